// Package sqlite is the embedded database node: SQLite behind the PostgreSQL
// wire protocol, so that the same client speaks to it and to a PostgreSQL
// server.
//
// It runs a fixed catalogue of statements and nothing else: SQLite alone knows
// no types of parameters and expressions, and a node needs no more. It never
// listens on anything but a loopback address, for it knows no passwords. It
// replicates nothing.
//
// What a client sees is what PostgreSQL does: every statement up to a Sync is
// one transaction, a failure takes all of it back and skips to the Sync, BEGIN
// to COMMIT is a transaction across round trips, and a client that dies inside
// of one leaves nothing behind. What differs: one transaction writes at a time
// (others wait in line, in the order of their arrival), BEGIN READ ONLY sees
// one snapshot, there are no savepoints, and a message larger than
// Config.MessageBufferSize ends the connection.
//
// Files: server.go accepts and ends connections; guard.go is the connection
// itself, checked and buffered; session.go is what a client has going on;
// writer.go and readers.go are the SQLite connections, with the queue and the
// group commit in front of the one that writes; catalogue.go and values.go
// translate between the two worlds.
//
// A Server may be used by any number of goroutines. The order of calls is New,
// Serve, Shutdown.
package sqlite
