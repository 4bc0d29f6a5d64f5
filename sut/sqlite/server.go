// Package sqlite is the embedded database node: SQLite behind the PostgreSQL wire protocol. The same client works with
// it and with a PostgreSQL server.
//
// It runs a fixed catalogue of statements and nothing else, because SQLite does not know the types of parameters and
// expressions. It listens only on a loopback address, because it has no encryption. With Config.Replication the node
// replicates its database with other nodes. They connect to the same port as clients and exchange the messages of
// package replog.
//
// This package holds the configuration, the start and the end of a node. Package wire speaks the protocol, engine runs
// the statements in SQLite, replication implements a primary with replicas, and multiprimary a multi-primary set.
//
// A client sees the behaviour of PostgreSQL. All statements up to a Sync are one transaction. An error rolls it back
// and skips the messages up to the Sync. A transaction from BEGIN to COMMIT may span round trips. If a client dies, its
// transaction is rolled back. There are four differences:
//   - One transaction writes at a time. Others wait in a queue, in order of arrival.
//   - BEGIN READ ONLY sees one snapshot.
//   - There are no savepoints.
//   - A message larger than 64 KiB ends the connection.
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
	"time"

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
	cfg        Config
	wire       *wire.Server
	db         *engine.DB
	replicator replicator

	serving  atomic.Bool   // Serve was called, or Shutdown was called first
	accepted chan struct{} // closed when Serve accepts no more clients
	stopped  chan struct{} // closed when everything is closed
	stop     sync.Once
	err      error // of the shutdown; set before stopped is closed
}

// replicator is the replication of the node: single-primary, multi-primary or none.
type replicator interface {
	engine.Replicator
	// Start starts to receive changes from other nodes. clientsGone is closed when the node stops and no client is
	// connected.
	Start(clientsGone <-chan struct{})
	// Serve serves a connection from another node. It reads from in and writes to link.
	Serve(link net.Conn, in io.Reader)
	Status() sut.ReplicationStatus
	ChangeRole(ctx context.Context, to sut.Replication) error
	LostChanges(ctx context.Context, name string) (sut.Lost, error)
	DropCopy(name string) error
	// Abort ends all waits for other nodes. Stop ends all goroutines of the replicator.
	Abort()
	Stop()
}

// standalone is the replicator of a node without Config.Replication: a primary without replicas.
type standalone struct{ engine.NoReplication }

func (standalone) Start(<-chan struct{})     {}
func (standalone) Serve(net.Conn, io.Reader) {}
func (standalone) Abort()                    {}
func (standalone) Stop()                     {}
func (standalone) Status() sut.ReplicationStatus {
	return sut.ReplicationStatus{Primary: true, Serves: true, LagNS: -1}
}

func (standalone) ChangeRole(context.Context, sut.Replication) error {
	return fmt.Errorf("%w: this node runs without replication", ErrRefused)
}

func (standalone) LostChanges(context.Context, string) (sut.Lost, error) {
	return sut.Lost{}, errors.New("this node keeps no old copies")
}
func (standalone) DropCopy(string) error { return nil }

// Stats are counters since the start of the node.
type Stats struct {
	// Connections is the number of connected clients.
	Connections int
	// Reads is the number of statements outside write transactions.
	Reads int64
	// Transactions is the number of write transactions that began.
	Transactions int64
	// Commits is the number of commits. It is less than Transactions if transactions shared commits.
	Commits int64
}

// New opens or creates the database and listens. Serve serves clients, Shutdown closes everything.
func New(cfg Config) (_ *Server, err error) {
	if cfg, err = cfg.withDefaults(); err != nil {
		return nil, fmt.Errorf("sqlite node: %w", err)
	}
	s := &Server{cfg: cfg, replicator: standalone{}, accepted: make(chan struct{}), stopped: make(chan struct{})}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("sqlite node: %w", err), s.free())
		}
	}()
	catalogue, err := wire.NewCatalogue(cfg.Statements)
	if err != nil {
		return nil, err
	}
	files := engine.Config{
		Dir: cfg.Dir, Statements: len(catalogue), ReadConns: 4, GroupLimit: 16, Log: cfg.Log,
		MaxKept: sut.MaxKept, MaxBytes: cfg.MaxBytes,
		Synchronous: "full", // a commit survives a power failure, as with PostgreSQL's default
	}
	protocol := wire.Config{
		Catalogue: catalogue, MaxConns: 100, MaxStarting: 200, HandshakeTimeout: 5 * time.Second,
		IdleInTransaction: 10 * time.Second, // other writers may be waiting for the client
		Password:          string(cfg.Secret), Log: cfg.Log,
	}
	if cfg.adjust != nil {
		cfg.adjust(&files, &protocol)
	}
	if s.db, err = engine.Open(files); err != nil {
		return nil, err
	}
	protocol.NewSession = s.db.NewSession
	if r := cfg.Replication; r != nil {
		if r.State.MultiPrimary {
			s.replicator, err = multiprimary.Open(s.db, *r, cfg.Log)
		} else {
			s.replicator, err = replication.Open(s.db, *r, cfg.Log)
		}
		if err != nil {
			return nil, err
		}
		s.db.Use(s.replicator)
		protocol.Replica, protocol.ReplicaCode = s.replicator.Serve, replog.StartupCode
	}
	s.wire = wire.New(protocol)
	s.db.Cancel = s.wire.Cancel
	s.replicator.Start(s.wire.ClientsGone())
	return s, nil
}

// Addr returns the address on which the node listens.
func (s *Server) Addr() net.Addr { return s.cfg.Listener.Addr() }

// Version returns the name and version of the engine.
func (s *Server) Version() string { return "SQLite " + LibraryVersion }

// Stats returns the counters.
func (s *Server) Stats() Stats {
	stats := Stats{Connections: s.wire.Connections()}
	stats.Reads, stats.Transactions, stats.Commits = s.db.Stats()
	return stats
}

// ReplicationStatus returns the status of the node's copy. Without Config.Replication it is the status of a primary
// without replicas.
func (s *Server) ReplicationStatus() sut.ReplicationStatus {
	return s.replicator.Status()
}

// ChangeRole changes the role of the node. A replica becomes the primary or follows another
// primary. A multi-primary node gets a new list of origins. A role that the node must not
// take is ErrRefused. Before a replica becomes the primary, it applies all changes that it
// has received. If the context ends first, it stays a replica.
func (s *Server) ChangeRole(ctx context.Context, to sut.Replication) error {
	return s.replicator.ChangeRole(ctx, to)
}

// LostChanges returns the changes of a kept copy that the present copy does not have.
func (s *Server) LostChanges(ctx context.Context, name string) (sut.Lost, error) {
	return s.replicator.LostChanges(ctx, name)
}

// DropCopy removes a kept copy. It does nothing if there is none with this name.
func (s *Server) DropCopy(name string) error { return s.replicator.DropCopy(name) }

// Serve serves clients until Shutdown is called or the context ends. At the end of the context it closes all
// connections at once. It returns when everything is closed. It may be called once.
func (s *Server) Serve(ctx context.Context) error {
	if !s.serving.CompareAndSwap(false, true) {
		return errors.New("sqlite node: Serve after Serve or Shutdown")
	}
	now, cancel := context.WithCancel(context.Background())
	cancel()
	release := context.AfterFunc(ctx, func() { _ = s.Shutdown(now) })
	defer release()
	s.wire.Serve(s.cfg.Listener)
	close(s.accepted)
	<-s.stopped
	return s.err
}

// Shutdown accepts no new clients, lets each client finish its request or transaction, and closes the database, which
// leaves one file. When the context ends, Shutdown waits no longer and rolls back open transactions.
func (s *Server) Shutdown(ctx context.Context) error {
	first := false
	s.stop.Do(func() { first = true })
	if !first {
		select {
		case <-s.stopped:
		case <-ctx.Done():
			s.abort()
			<-s.stopped
		}
		return s.err
	}
	if err := s.cfg.Listener.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
		s.cfg.Log.Warn("closing the listener", "cause", err)
	}
	if !s.serving.CompareAndSwap(false, true) {
		<-s.accepted
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
		s.abort()
		<-gone
	}
	s.replicator.Stop()
	s.err = s.free()
	close(s.stopped)
	return s.err
}

// abort ends all connections and waits.
func (s *Server) abort() {
	s.replicator.Abort()
	s.wire.Abort()
}

// free closes what New has opened, also after an error in the middle of New.
func (s *Server) free() (err error) {
	if s.db != nil {
		err = s.db.Close()
	}
	return err
}
