// Package sqlite is the embedded database node: SQLite behind the PostgreSQL
// wire protocol, so that the same client speaks to it and to a PostgreSQL
// server.
//
// It runs a fixed catalogue of statements and nothing else: SQLite alone knows
// no types of parameters and expressions, and a node needs no more. It never
// listens on anything but a loopback address, for it knows no passwords. With
// Config.Replication it is one of several nodes with the same database; what
// changes travels as replog has it, over the port of the clients.
//
// What a client sees is what PostgreSQL does: every statement up to a Sync is
// one transaction, a failure takes all of it back and skips to the Sync, BEGIN
// to COMMIT is a transaction across round trips, and a client that dies inside
// of one leaves nothing behind. What differs: one transaction writes at a time
// (others wait in line, in the order of their arrival), BEGIN READ ONLY sees
// one snapshot, there are no savepoints, and a message larger than
// Config.MessageBufferSize ends the connection.
//
// Files: server.go starts and ends a node; package wire speaks with clients,
// session.go is what one of them has going on; conn.go is a connection to SQLite
// and the pool of those that read, writer.go the line in front of the one that
// writes; values.go translates between the two worlds. Of replication, replication.go is
// the node's role, sender.go a replica as its primary sees it, follower.go a
// primary as its replica sees it, apply.go the repeating of what it sends,
// snapshot.go the replacing of a database, and several.go what makes the node one
// of several primaries, which package several is about.
//
// A Server may be used by any number of goroutines. The order of calls is New,
// Serve, Shutdown.
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"sync/atomic"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// Server is an embedded database node.
type Server struct {
	cfg       Config
	listener  net.Listener
	wire      *wire.Server
	catalogue wire.Catalogue
	writer    *writer
	readers   *readers
	// replication is the node's part among several; nil = it is alone.
	replication *replication
	reads       atomic.Int64

	serving atomic.Bool   // Serve has begun, or never may
	served  chan struct{} // closed when nobody is accepted any more
	stopped chan struct{} // closed when all is closed
	stop    sync.Once
	err     error // of the shutdown; set before stopped is closed
}

// Stats are counters since the node was made.
type Stats struct {
	// Connections is how many clients are connected now.
	Connections int
	// Reads is how many statements ran outside of write transactions.
	Reads int64
	// Transactions is how many write transactions began.
	Transactions int64
	// Commits is how often the disk was waited for: fewer than Transactions
	// when they came in groups.
	Commits int64
}

// New opens the database, makes it where there is none, and listens. Nobody is
// served before Serve; Shutdown frees everything.
func New(cfg Config) (_ *Server, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, fmt.Errorf("sqlite node: %w", err)
	}
	s := &Server{cfg: cfg, served: make(chan struct{}), stopped: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("sqlite node: %w", err), s.free())
		}
	}()
	if s.listener, err = cfg.listen(); err != nil {
		return nil, err
	}
	if s.catalogue, err = wire.NewCatalogue(cfg.Statements); err != nil {
		return nil, err
	}
	s.writer = &writer{limit: cfg.GroupLimit}
	if s.writer.conn, err = openConn(cfg, len(s.catalogue), true); err != nil {
		return nil, err
	}
	if s.readers, err = openReaders(cfg, len(s.catalogue)); err != nil {
		return nil, err
	}
	if err = s.openReplication(); err != nil {
		return nil, err
	}
	protocol := wire.Config{
		Catalogue: s.catalogue, NewSession: func() wire.Session { return &session{server: s} },
		MaxConns: cfg.MaxConns, MessageBytes: cfg.MessageBufferSize,
		HandshakeTimeout: cfg.HandshakeTimeout, IdleInTransaction: cfg.IdleInTransaction, Log: cfg.Log,
	}
	if s.replication != nil {
		protocol.Replica, protocol.ReplicaCode = s.replication.serve, replog.StartCode
	}
	s.wire = wire.New(protocol)
	s.replication.start()
	return s, nil
}

// Addr is where the node listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Version says what the engine is.
func (s *Server) Version() string { return "SQLite " + sqlite.Version }

// Stats returns the counters.
func (s *Server) Stats() Stats {
	return Stats{
		Connections: s.wire.Connections(), Reads: s.reads.Load(),
		Transactions: s.writer.transactions.Load(), Commits: s.writer.commits.Load(),
	}
}

// Serve serves clients until Shutdown, or until the context ends, which is a
// Shutdown that waits for nobody. It returns when everything is closed, and
// may be called once.
func (s *Server) Serve(ctx context.Context) error {
	if !s.serving.CompareAndSwap(false, true) {
		return errors.New("sqlite node: Serve after Serve or Shutdown")
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	release := context.AfterFunc(ctx, func() { _ = s.Shutdown(now) })
	defer release()
	s.wire.Serve(s.listener)
	close(s.served)
	<-s.stopped
	return s.err
}

// Shutdown takes no new clients, lets those who are inside of a request or a
// transaction end it, and closes the database, which leaves one file. When the
// context ends it waits no longer: what is open is rolled back.
func (s *Server) Shutdown(ctx context.Context) error {
	first := false
	s.stop.Do(func() { first = true })
	if !first {
		select {
		case <-s.stopped:
		case <-ctx.Done():
			s.cut()
			<-s.stopped
		}
		return s.err
	}
	if err := s.listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.cfg.Log.Warn("closing the listener", "cause", err)
	}
	if !s.serving.CompareAndSwap(false, true) {
		<-s.served
	}
	s.wire.Drain()
	gone := make(chan struct{})
	go func() {
		s.wire.Wait()
		close(gone)
	}()
	select {
	case <-gone:
	case <-ctx.Done():
		s.cut()
		<-gone
	}
	s.replication.stop()
	s.err = s.free()
	close(s.stopped)
	return s.err
}

// cut ends every connection now.
func (s *Server) cut() {
	s.replication.cut()
	s.wire.Cut()
}

// free closes what New opened, as far as it came.
func (s *Server) free() (err error) {
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.readers != nil {
		err = s.readers.close()
	}
	if s.writer != nil && s.writer.conn != nil {
		// The last connection to close moves the log into the file and
		// removes it.
		err = errors.Join(err, s.writer.conn.close())
	}
	return err
}
