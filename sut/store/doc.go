// Package store keeps the records of the photo service in an SQL database that
// is spoken to over the PostgreSQL wire protocol: a PostgreSQL server, or the
// embedded node of sut/sqlite. Changing one for the other is changing an
// address.
//
// It never holds photo bytes, caches nothing and knows no stage of the ladder.
// Times are microseconds since the Unix epoch, UTC. A Store may be used by any
// number of goroutines. The usual order of calls is Open, on an empty database
// CreateSchema and Load, then everything else, and Close.
//
// Every operation is one round trip and is atomic: either a single statement,
// or several in one pipeline, which both engines run as one transaction. All
// SQL is in one catalogue, see Statements.
package store
