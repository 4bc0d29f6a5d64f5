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
// Files: server.go accepts and ends connections; guard.go is the connection
// itself, checked and buffered; session.go is what a client has going on;
// conn.go is a connection to SQLite and the pool of those that read, writer.go
// the line in front of the one that writes; catalogue.go, control.go and
// values.go translate between the two worlds. Of replication, replication.go is
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
	"crypto/rand"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"sync"
	"sync/atomic"
	"time"

	wire "github.com/jeroenrinzema/psql-wire"
	"github.com/jeroenrinzema/psql-wire/codes"
	psqlerr "github.com/jeroenrinzema/psql-wire/errors"
	"github.com/jeroenrinzema/psql-wire/pkg/buffer"
	"github.com/jeroenrinzema/psql-wire/pkg/types"
	"zombiezen.com/go/sqlite"
)

// serverVersion is the PostgreSQL version whose behaviour the node has.
const serverVersion = "15.0"

// LibraryVersion is the version of the SQLite library, such as "3.53.1".
const LibraryVersion = sqlite.Version

// Server is an embedded database node.
type Server struct {
	cfg       Config
	listener  net.Listener
	wire      *wire.Server
	catalogue *catalogue
	writer    *writer
	readers   *readers
	// replication is the node's part among several; nil = it is alone.
	replication *replication
	reads       atomic.Int64
	nextPID     atomic.Int32

	serving atomic.Bool   // Serve has begun, or never may
	served  chan struct{} // closed when nobody is accepted any more
	stopped chan struct{} // closed when all is closed
	stop    sync.Once
	ended   atomic.Bool // whatever begins now is cancelled
	err     error       // of the shutdown; set before stopped is closed

	mu       sync.Mutex
	draining bool          // Shutdown has begun
	left     chan struct{} // closed when it has, and no clients but replicas are there
	guards   map[*guard]struct{}
	sessions map[int32]*session // by process id, for cancelling
}

// backendKey is what a client must show to cancel its statement.
type backendKey struct{ pid, secret int32 }

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
	s := &Server{
		cfg: cfg, served: make(chan struct{}), stopped: make(chan struct{}), left: make(chan struct{}),
		guards: map[*guard]struct{}{}, sessions: map[int32]*session{},
	}
	defer func() {
		if err != nil {
			err = errors.Join(fmt.Errorf("sqlite node: %w", err), s.free())
		}
	}()
	if s.listener, err = cfg.listen(); err != nil {
		return nil, err
	}
	if s.catalogue, err = newCatalogue(cfg.Statements); err != nil {
		return nil, err
	}
	s.writer = &writer{limit: cfg.GroupLimit}
	if s.writer.conn, err = openConn(cfg, s.catalogue.size, true); err != nil {
		return nil, err
	}
	if s.readers, err = openReaders(cfg, s.catalogue.size); err != nil {
		return nil, err
	}
	if err = s.openReplication(); err != nil {
		return nil, err
	}
	if s.wire, err = s.protocol(); err != nil {
		return nil, err
	}
	s.replication.start()
	return s, nil
}

// protocol sets up the wire protocol.
func (s *Server) protocol() (*wire.Server, error) {
	return wire.NewServer(s.parse,
		wire.Logger(slog.New(warnings{s.cfg.Log.Handler()})),
		wire.MessageBufferSize(s.cfg.MessageBufferSize),
		wire.GlobalParameters(wire.Parameters{"standard_conforming_strings": "on", "integer_datetimes": "on", "DateStyle": "ISO, MDY", "TimeZone": "UTC"}),
		wire.Statements(func() wire.StatementCache { return statements{missing: s.catalogue.missing} }),
		wire.Portals(func() wire.PortalCache { return &portals{byName: map[string]*portal{}} }),
		wire.SessionAuthStrategy(s.admit),
		wire.BackendKeyData(func(ctx context.Context) (int32, int32) { k := sessionOf(ctx).key; return k.pid, k.secret }),
		wire.CancelRequest(s.cancel),
		wire.TxStatus(func(ctx context.Context) types.ServerStatus { return sessionOf(ctx).status }),
		wire.SyncConn(func(ctx context.Context, broke bool) error { return sessionOf(ctx).sync(broke) }),
	)
}

// Addr is where the node listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Version says what the engine is.
func (s *Server) Version() string { return "SQLite " + LibraryVersion }

// Stats returns the counters.
func (s *Server) Stats() Stats {
	s.mu.Lock()
	defer s.mu.Unlock()
	return Stats{
		Connections: len(s.sessions), Reads: s.reads.Load(),
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
	err := s.wire.Serve(gate{Listener: s.listener, server: s})
	close(s.served)
	if err != nil {
		// The listener broke: nobody else will notice.
		_ = s.Shutdown(now)
		return fmt.Errorf("sqlite node: %w", err)
	}
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
	// psql-wire's own shutdown makes idle connections swallow what they are
	// asked, so it comes last, when there are none.
	s.mu.Lock()
	s.draining = true
	for g := range s.guards {
		if !g.replica {
			g.drain()
		}
	}
	s.clientsLeft()
	s.mu.Unlock()
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
	s.err = errors.Join(s.wire.Close(), s.free())
	close(s.stopped)
	return s.err
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

// cut ends every connection now, and what it is doing or waiting for. Their
// own goroutines find out and clean up.
func (s *Server) cut() {
	s.ended.Store(true)
	s.replication.cut()
	s.mu.Lock()
	defer s.mu.Unlock()
	for g := range s.guards {
		_ = g.Conn.Close()
	}
	for _, n := range s.sessions {
		n.cancel()
	}
}

// gate is the listener as psql-wire sees it: connections come guarded, and a
// moment without file descriptors is not the end.
type gate struct {
	net.Listener
	server *Server
}

// Accept waits for the next client.
func (l gate) Accept() (net.Conn, error) {
	s := l.server
	for pause := 5 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		c, err := l.Listener.Accept()
		if err == nil {
			g := &guard{Conn: c, server: s, limit: s.cfg.MessageBufferSize, born: time.Now()}
			s.mu.Lock()
			s.guards[g] = struct{}{}
			s.mu.Unlock()
			return g, nil
		}
		if errors.Is(err, net.ErrClosed) {
			return nil, err
		}
		s.cfg.Log.Warn("accepting a client", "cause", err)
		select {
		case <-s.stopped:
			return nil, net.ErrClosed
		case <-time.After(pause):
		}
	}
}

// Close closes the listener; that it is closed already is no error.
func (l gate) Close() error {
	if err := l.Listener.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// sessionKey finds the session in the contexts of psql-wire.
type sessionKey struct{}

func sessionOf(ctx context.Context) *session { return ctx.Value(sessionKey{}).(*session) }

// admit lets a client in that has introduced itself, if there is room. Any
// name will do: there is one database, and it has no passwords.
func (s *Server) admit(ctx context.Context, w *buffer.Writer, _ *buffer.Reader) (context.Context, error) {
	g := wire.RemoteAddress(ctx).(peer).guard
	var secret [4]byte
	rand.Read(secret[:]) // never fails
	n := &session{server: s, guard: g, names: map[string]*statement{}, status: idle, key: backendKey{
		pid: s.nextPID.Add(1) & math.MaxInt32, secret: int32(binary.BigEndian.Uint32(secret[:])),
	}}
	s.mu.Lock()
	full := len(s.sessions) >= s.cfg.MaxConns
	if !full {
		s.sessions[n.key.pid] = n
		g.session = n
	}
	s.mu.Unlock()
	if full {
		err := psqlerr.WithSeverity(fault(codes.TooManyConnections, "sorry, too many clients already"), psqlerr.LevelFatal)
		return ctx, errors.Join(io.EOF, wire.WriteUnterminatedError(w, err))
	}
	w.Start(types.ServerAuth)
	w.AddInt32(0) // AuthenticationOk
	return context.WithValue(ctx, sessionKey{}, n), w.End()
}

// clientsLeft tells replicas that no more will change when a shutdown has seen
// the last client go; the lock is held.
func (s *Server) clientsLeft() {
	if !s.draining {
		return
	}
	for g := range s.guards {
		if !g.replica {
			return
		}
	}
	select {
	case <-s.left:
	default:
		close(s.left)
	}
}

// depart takes back what a client had open when its connection ends.
func (s *Server) depart(g *guard) {
	if g.session != nil {
		_ = g.session.close(false)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.guards, g)
	s.clientsLeft()
	if g.session != nil {
		delete(s.sessions, g.session.key.pid)
	}
}

// cancel cancels the statement of the client with that key. As in PostgreSQL
// nobody hears whether there was one.
func (s *Server) cancel(_ context.Context, pid, secret int32) error {
	s.mu.Lock()
	target := s.sessions[pid]
	s.mu.Unlock()
	if target != nil && subtle.ConstantTimeEq(target.key.secret, secret) == 1 {
		target.cancel()
	}
	return nil
}

// parse finds the statement that a client means.
func (s *Server) parse(ctx context.Context, q wire.Query) (wire.PreparedStatements, error) {
	n := sessionOf(ctx)
	found := s.catalogue.bySQL[q.Query]
	if found == nil {
		var err error
		if found, err = parseControl(q.Query); err != nil {
			n.fail()
			return nil, err
		}
	}
	n.asked = found
	return found.parsed, nil
}

// warnings is a log without what psql-wire says to its developers: at that
// level it shows every parameter, digests of passwords included.
type warnings struct{ slog.Handler }

// Enabled reports whether a level is logged.
func (h warnings) Enabled(ctx context.Context, level slog.Level) bool {
	return level >= slog.LevelWarn && h.Handler.Enabled(ctx, level)
}
