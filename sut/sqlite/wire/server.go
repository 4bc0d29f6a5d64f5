// Package wire is the server side of the PostgreSQL protocol, as far as a node needs it: sessions, prepared
// statements, portals, transactions, cancellation. It knows no database: what a statement does is up to a Session.
//
// The messages are those of pgproto3; this package reads them out of one buffer per client, gathers the answers, and
// sends them with one system call when there is nothing left to read. A malformed or too large message ends the
// connection.
//
// A Server may be used by any number of goroutines. The order of calls is New, Serve, Drain, Cut, Wait.
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

// Session is what one client has going on in the database. One goroutine uses it; only Cancel comes from others.
//
// A transaction begins with the first Run, or with Begin, and lasts until End.
type Session interface {
	// Begin begins a transaction that may last over round trips.
	Begin(readOnly bool) error
	// Run runs a statement of the catalogue, appends its rows to out as DataRow messages, and returns how many rows
	// came back or were changed.
	Run(out []byte, command *Command, with *pgproto3.Bind) ([]byte, int, error)
	// End ends the transaction with its work committed or taken back; without one it does nothing.
	End(commit bool) error
	// HoldsResources reports whether others may be waiting for this client.
	HoldsResources() bool
	// Cancel ends the statement under way, if there is one, and, for good, all that come after it.
	Cancel(forGood bool)
}

// Config says whom a server serves and how.
type Config struct {
	Catalogue         Catalogue
	NewSession        func() Session
	MaxConns          int           // clients that are served at a time
	HandshakeTimeout  time.Duration // ends a connection that does not introduce itself
	IdleInTransaction time.Duration // ends a connection that holds others up without a word
	// Replica serves a connection whose first packet is ReplicaCode; in is what is read from it. The connection is
	// closed when it returns. nil = there are no replicas.
	Replica     func(link net.Conn, in io.Reader)
	ReplicaCode uint32
	Log         *slog.Logger
}

// Server serves clients.
type Server struct {
	cfg     Config
	serving sync.WaitGroup // connections

	mu       sync.Mutex
	nextPID  uint32
	draining bool
	ended    bool          // Cut was called
	left     chan struct{} // closed when draining, and no clients but replicas are there
	conns    map[*conn]struct{}
	sessions map[uint32]*conn // by process id, for cancelling
}

// New returns a server that serves nobody yet.
func New(cfg Config) *Server {
	return &Server{cfg: cfg, left: make(chan struct{}), conns: map[*conn]struct{}{}, sessions: map[uint32]*conn{}}
}

// Serve accepts clients until the listener is closed. A moment without file descriptors is not the end.
func (s *Server) Serve(l net.Listener) {
	const shortest = 5 * time.Millisecond
	pause := shortest
	for {
		link, err := l.Accept()
		if err == nil {
			pause = shortest
			c := &conn{
				net: link, server: s, since: time.Now(), status: idle,
				statements: map[string]*Command{}, portals: map[string]*portal{},
			}
			c.in = bufio.NewReaderSize(c, messageBytes)
			s.mu.Lock()
			s.conns[c] = struct{}{}
			s.mu.Unlock()
			s.serving.Go(c.serve)
			continue
		}
		if errors.Is(err, net.ErrClosed) {
			return
		}
		s.cfg.Log.Warn("accepting a client", "cause", err)
		time.Sleep(pause)
		pause = min(2*pause, time.Second)
	}
}

// Connections is how many clients are served now.
func (s *Server) Connections() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.sessions)
}

// Drain lets clients end the request or transaction in which they are, and then ends their connections. Nobody may be
// accepted any more. Replicas stay.
func (s *Server) Drain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	for c := range s.conns {
		if !c.replica {
			c.drain()
		}
	}
	s.clientsLeft()
}

// Left is closed when Drain has seen the last client go.
func (s *Server) Left() <-chan struct{} { return s.left }

// Wait returns when all connections have ended.
func (s *Server) Wait() { s.serving.Wait() }

// Cancel cancels what all clients have under way, and with disconnect ends their connections.
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

// Cut ends every connection now, and what it is doing or waiting for. Their own goroutines find out and clean up.
func (s *Server) Cut() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	for c := range s.conns {
		_ = c.net.Close()
	}
	for _, c := range s.sessions {
		c.session.Cancel(true)
	}
}

func (s *Server) admit(c *conn) bool {
	rand.Read(c.secret[:]) // never fails
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended || len(s.sessions) >= s.cfg.MaxConns {
		return false
	}
	s.nextPID = s.nextPID%math.MaxInt32 + 1
	c.pid, c.session = s.nextPID, s.cfg.NewSession()
	s.sessions[c.pid] = c
	return true
}

// cancel cancels the statement of the client with that key. As in PostgreSQL nobody hears whether there was one.
func (s *Server) cancel(pid uint32, secret []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.sessions[pid]; c != nil && subtle.ConstantTimeCompare(c.secret[:], secret) == 1 {
		c.session.Cancel(false)
	}
}

func (s *Server) isReplica(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	c.replica = true
	s.clientsLeft()
}

func (s *Server) depart(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	if c.session != nil {
		delete(s.sessions, c.pid)
	}
	s.clientsLeft()
}

// clientsLeft closes left when it is time; the lock is held.
func (s *Server) clientsLeft() {
	if !s.draining {
		return
	}
	for c := range s.conns {
		if !c.replica {
			return
		}
	}
	select {
	case <-s.left:
	default:
		close(s.left)
	}
}
