// Package wire is the server side of the PostgreSQL protocol, as far as a node needs it: sessions, prepared
// statements, portals, transactions, cancellation. It knows no database: a Session runs the statements.
//
// The messages are those of pgproto3. This package reads them from one buffer per client and collects the answers. It
// sends the answers with one system call when the buffer holds no more messages. A malformed or too large message ends
// the connection.
//
// A Server may be used by any number of goroutines. The order of calls is New, Serve, Drain, Abort, Wait.
package wire

import (
	"bufio"
	"crypto/rand"
	"crypto/subtle"
	"errors"
	"io"
	"log/slog"
	"math"
	"net"
	"sync"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// Session is the state of one client in the database. One goroutine uses it; other goroutines may call only Cancel.
//
// A transaction begins with the first Run, or with Begin, and lasts until End.
type Session interface {
	// Begin begins a transaction that may span round trips.
	Begin(readOnly bool) error
	// Run runs a statement of the catalogue and appends its rows to out as DataRow messages. It returns out and the
	// number of returned or changed rows.
	Run(out []byte, command *Command, with *pgproto3.Bind) ([]byte, int, error)
	// End commits or rolls back the transaction. It does nothing if no transaction is open.
	End(commit bool) error
	// HoldsResources reports whether other clients may be waiting for this one.
	HoldsResources() bool
	// Cancel cancels the running statement, if there is one. forGood also cancels every later one.
	Cancel(forGood bool)
}

// Config is the configuration of a Server.
type Config struct {
	Catalogue         Catalogue
	NewSession        func() Session
	MaxConns          int           // maximum number of clients
	MaxStarting       int           // maximum number of connections without a session, also those of replicas
	HandshakeTimeout  time.Duration // time for a client to start its session
	IdleInTransaction time.Duration // time that a client may be silent while HoldsResources is true
	Password          string        // of every client and replica; "" = they need none
	// Replica serves a connection whose first packet has the code ReplicaCode and then Password. It must read from in and
	// write to link. The connection is closed when Replica returns. nil = there are no replicas.
	Replica     func(link net.Conn, in io.Reader)
	ReplicaCode uint32
	Log         *slog.Logger
}

// Server serves clients.
type Server struct {
	cfg     Config
	serving sync.WaitGroup // one per connection

	mu          sync.Mutex
	lastPID     uint32
	draining    bool
	aborted     bool
	clientsGone chan struct{} // closed when draining and only replicas are connected
	conns       map[*conn]struct{}
	sessions    map[uint32]*conn // by process id, for cancellation
}

// New returns a server. It serves no clients until Serve is called.
func New(cfg Config) *Server {
	return &Server{
		cfg: cfg, clientsGone: make(chan struct{}), conns: map[*conn]struct{}{}, sessions: map[uint32]*conn{},
	}
}

// Serve accepts clients until the listener is closed. After any other error, such as a lack of file descriptors, it
// logs the error and tries again.
func (s *Server) Serve(l net.Listener) {
	const shortest = 5 * time.Millisecond
	pause := shortest
	for {
		link, err := l.Accept()
		if err == nil {
			pause = shortest
			c := &conn{
				net: link, server: s, accepted: time.Now(), status: idle,
				statements: map[string]*Command{}, portals: map[string]*portal{},
			}
			if !s.enter(c) {
				// The message fits into the socket's buffer, so this does not wait for the client.
				c.sendError("FATAL", fatal(TooManyConnections, "sorry, too many clients already"))
				_ = c.flush()
				_ = link.Close()
				continue
			}
			c.in = bufio.NewReaderSize(c, messageBytes)
			s.serving.Go(c.serve)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		s.cfg.Log.Warn("accepting a client: will retry", "cause", err)
		time.Sleep(pause)
		pause = min(2*pause, time.Second)
	}
}

// enter counts a new connection. It returns false if too many others have no session: each of them holds a buffer, and
// needs no password for that.
func (s *Server) enter(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns)-len(s.sessions) >= s.cfg.MaxStarting {
		return false
	}
	s.conns[c] = struct{}{}
	return true
}

// Connections returns the number of connected clients.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Drain lets each client finish its current request or transaction, and then closes its connection. The caller must
// have closed the listener. Replicas stay connected.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for c := range s.conns {
		if !c.replica {
			c.drain()
		}
	}
	s.checkClientsGone()
}

// ClientsGone returns a channel that is closed when Drain was called and the last client has disconnected.
func (s *Server) ClientsGone() <-chan struct{} { return s.clientsGone }

// Wait returns when all connections, also those of replicas, are closed.
func (s *Server) Wait() { s.serving.Wait() }

// Cancel cancels the running statements of all clients. With disconnect it also closes their connections.
func (s *Server) Cancel(disconnect bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.sessions {
		c.session.Cancel(false)
		if disconnect {
			_ = c.net.Close()
		}
	}
}

// Abort closes every connection and cancels its statement. It does not wait: each connection's goroutine cleans up.
func (s *Server) Abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted = true
	for c := range s.conns {
		_ = c.net.Close()
	}
	for _, c := range s.sessions {
		c.session.Cancel(true)
	}
}

// admit registers the session of a new client. It returns false if there are too many clients.
func (s *Server) admit(c *conn) bool {
	rand.Read(c.secret[:]) // never fails
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.aborted || len(s.sessions) >= s.cfg.MaxConns {
		return false
	}
	s.lastPID = s.lastPID%math.MaxInt32 + 1
	c.pid, c.session = s.lastPID, s.cfg.NewSession()
	s.sessions[c.pid] = c
	return true
}

// cancel cancels the running statement of the client with this key. As in PostgreSQL, the sender of the request does
// not learn whether the key was right.
func (s *Server) cancel(pid uint32, secret []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.sessions[pid]; c != nil && subtle.ConstantTimeCompare(c.secret[:], secret) == 1 {
		c.session.Cancel(false)
	}
}

func (s *Server) markReplica(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.replica = true
	s.checkClientsGone()
}

func (s *Server) remove(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if c.session != nil {
		delete(s.sessions, c.pid)
	}
	s.checkClientsGone()
}

// checkClientsGone closes clientsGone if the server is draining and only replicas are connected. The lock is held.
func (s *Server) checkClientsGone() {
	if !s.draining {
		return
	}
	for c := range s.conns {
		if !c.replica {
			return
		}
	}
	select {
	case <-s.clientsGone:
	default:
		close(s.clientsGone)
	}
}
