// Package sqlite is the embedded database node: SQLite behind the PostgreSQL wire protocol, so that the same client
// speaks to it and to a PostgreSQL server.
//
// It runs a fixed catalogue of statements and nothing else: SQLite alone knows no types of parameters and
// expressions, and a node needs no more. It never listens on anything but a loopback address, for it knows no
// passwords. With Config.Replication it is one of several nodes with the same database; what changes travels as
// replog has it, over the port of the clients.
//
// This package is the door: configuration, start and end of a node. Package wire speaks with clients, engine runs
// their statements in SQLite, replication keeps copies of one primary, and multiprimary makes a node one of several
// primaries.
//
// What a client sees is what PostgreSQL does: every statement up to a Sync is one transaction, a failure takes all of
// it back and skips to the Sync, BEGIN to COMMIT is a transaction across round trips, and a client that dies inside
// of one leaves nothing behind. What differs: one transaction writes at a time (others wait in line, in the order of
// their arrival), BEGIN READ ONLY sees one snapshot, there are no savepoints, and a message larger than 64 KiB ends
// the connection.
//
// A Server may be used by any number of goroutines. The order of calls is New, Serve, Shutdown.
package sqlite

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/engine"
	"github.com/stagebench/stagebench/sut/sqlite/multiprimary"
	"github.com/stagebench/stagebench/sut/sqlite/replication"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// LibraryVersion is the version of the compiled-in SQLite library, such as "3.49.2".
const LibraryVersion = sqlite.Version

// Server is an embedded database node.
type Server struct {
	cfg      Config
	listener net.Listener
	wire     *wire.Server
	db       *engine.DB
	copies   copies

	serving atomic.Bool   // Serve has begun, or never may
	served  chan struct{} // closed when nobody is accepted any more
	stopped chan struct{} // closed when all is closed
	stop    sync.Once
	err     error // of the shutdown; set before stopped is closed
}

// copies is the node's part among those with the same database.
type copies interface {
	engine.Replicator
	// Start begins to get changes; left is closed when the node stops and no client is there any more.
	Start(left <-chan struct{})
	// Serve gives another node what it asks for.
	Serve(link net.Conn, in io.Reader)
	Status() sut.ReplicationStatus
	Become(ctx context.Context, to sut.Replication) error
	LostChanges(ctx context.Context) (sut.Lost, error)
	// Cut ends all waits, Stop all that goes on besides the clients.
	Cut()
	Stop()
}

// alone is the part of a node without Config.Replication: a lone primary.
type alone struct{ engine.NoReplication }

func (alone) Start(<-chan struct{})     {}
func (alone) Serve(net.Conn, io.Reader) {}
func (alone) Cut()                      {}
func (alone) Stop()                     {}
func (alone) Status() sut.ReplicationStatus {
	return sut.ReplicationStatus{Primary: true, Serves: true, LagNS: -1}
}

func (alone) Become(context.Context, sut.Replication) error {
	return fmt.Errorf("%w: this database has no copies", ErrRefused)
}

func (alone) LostChanges(context.Context) (sut.Lost, error) {
	return sut.Lost{Changes: []sut.LostChange{}}, nil
}

// Stats are counters since the node was made.
type Stats struct {
	// Connections is how many clients are connected now.
	Connections int
	// Reads is how many statements ran outside of write transactions.
	Reads int64
	// Transactions is how many write transactions began.
	Transactions int64
	// Commits is how often the disk was waited for: fewer than Transactions when they came in groups.
	Commits int64
}

// New opens or makes the database and listens. Serve serves clients, Shutdown frees everything.
func New(cfg Config) (_ *Server, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, fmt.Errorf("sqlite node: %w", err)
	}
	s := &Server{cfg: cfg, copies: alone{}, served: make(chan struct{}), stopped: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("sqlite node: %w", err), s.free())
		}
	}()
	if s.listener, err = cfg.listen(); err != nil {
		return nil, err
	}
	catalogue, err := wire.NewCatalogue(cfg.Statements)
	if err != nil {
		return nil, err
	}
	if s.db, err = engine.Open(engine.Config{
		Dir: cfg.Dir, Statements: len(catalogue), ReadConns: cfg.ReadConns,
		Synchronous: string(cfg.Durability), GroupLimit: cfg.GroupLimit, Log: cfg.Log,
	}); err != nil {
		return nil, err
	}
	protocol := wire.Config{
		Catalogue: catalogue, NewSession: s.db.NewSession, MaxConns: cfg.MaxConns,
		HandshakeTimeout: cfg.HandshakeTimeout, IdleInTransaction: cfg.IdleInTransaction, Log: cfg.Log,
	}
	if r := cfg.Replication; r != nil {
		if r.State.Several {
			s.copies, err = multiprimary.Open(s.db, *r, cfg.Log)
		} else {
			s.copies, err = replication.Open(s.db, *r, cfg.Log)
		}
		if err != nil {
			return nil, err
		}
		s.db.Use(s.copies)
		protocol.Replica, protocol.ReplicaCode = s.copies.Serve, replog.StartupCode
	}
	s.wire = wire.New(protocol)
	s.db.Cancel = s.wire.Cancel
	s.copies.Start(s.wire.Left())
	return s, nil
}

// Addr is where the node listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Version says what the engine is.
func (s *Server) Version() string { return "SQLite " + LibraryVersion }

// Stats returns the counters.
func (s *Server) Stats() Stats {
	stats := Stats{Connections: s.wire.Connections()}
	stats.Reads, stats.Transactions, stats.Commits = s.db.Stats()
	return stats
}

// ReplicationStatus says how the node's copy is. It is that of a lone primary without Config.Replication.
func (s *Server) ReplicationStatus() sut.ReplicationStatus {
	return s.copies.Status()
}

// Become makes a replica the primary, or lets it follow another one; one of several primaries gets its changes from
// others. It returns ErrRefused for what the node must not be, as sut.Replication says. What a replica has received
// it applies before it is the primary; should the context end before that, it goes on as a replica.
func (s *Server) Become(ctx context.Context, to sut.Replication) error {
	return s.copies.Become(ctx, to)
}

// LostChanges is what the copy that was replaced last held, and the primary that replaced it did not.
func (s *Server) LostChanges(ctx context.Context) (sut.Lost, error) {
	return s.copies.LostChanges(ctx)
}

// Serve serves clients until Shutdown, or until the context ends, which is a Shutdown that waits for nobody. It
// returns when everything is closed, and may be called once.
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

// Shutdown takes no new clients, lets those who are inside of a request or a transaction end it, and closes the
// database, which leaves one file. When the context ends it waits no longer: what is open is rolled back.
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
	s.copies.Stop()
	s.err = s.free()
	close(s.stopped)
	return s.err
}

func (s *Server) cut() {
	s.copies.Cut()
	s.wire.Cut()
}

// free closes what New opened, as far as it came.
func (s *Server) free() (err error) {
	if s.listener != nil {
		_ = s.listener.Close()
	}
	if s.db != nil {
		err = s.db.Close()
	}
	return err
}
