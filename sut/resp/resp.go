// Package resp is the embedded cache node: keys and opaque values in memory,
// behind the part of Redis' protocol that caches need, so that any client of
// Redis can use it and Redis can take its place.
//
// It has a budget in bytes, which keys, values and what an entry costs besides
// count against, and which is never exceeded: a policy decides who goes. Entries
// expire when they are asked for, or when a sweep meets them. Nothing is stored
// on disk. Keys are spread over shards with a lock and an equal part of the
// budget each, so a value larger than such a part is refused.
//
// Protocol version 2 only: HELLO is answered with an error, upon which clients
// fall back. There are no passwords, which is why it serves loopback alone.
//
// Times are in ms on the wire and inside, where the clock is passed in. All
// methods of Server may be called concurrently. Usual order of calls: New, Serve,
// Shutdown; Extend before Serve.
package resp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"math/bits"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Config is what a server is made of.
type Config struct {
	// Listener is where clients come in, on loopback. The server closes it.
	Listener net.Listener
	MaxBytes int64 // budget for keys, values and their overhead; 0 = no limit
	Evict    Evict // who goes when the budget is used up; "" = LRU
	// Shards is how many parts with a lock of their own the keys are in, a power of
	// two; 0 = 16, or fewer when the parts of the budget would be under 1 MiB.
	Shards int
	// MaxCommandBytes is how long a command may be; 0 = 64 MiB.
	MaxCommandBytes int64
	// SweepInterval is the time between two looks for entries that have expired; 0 =
	// 100 ms.
	SweepInterval time.Duration
	// Proxy has a server answer commands about the connection (PING and the like) only,
	// besides those that it is given by Extend: it stands before another one, and holds
	// nothing itself.
	Proxy bool
	Seed  uint64           // of what the sweep picks
	Now   func() time.Time // by which entries expire; nil = time.Now
}

func (c *Config) complete() error {
	if c.Listener == nil {
		return errors.New("no listener")
	}
	if address, ok := c.Listener.Addr().(*net.TCPAddr); !ok || !address.IP.IsLoopback() {
		return fmt.Errorf("listens on %v: want an address on loopback, as there are no passwords", c.Listener.Addr())
	}
	if c.MaxBytes < 0 || c.MaxCommandBytes < 0 || c.SweepInterval < 0 {
		return errors.New("negative limit")
	}
	if c.Shards == 0 {
		c.Shards = 16
		if c.MaxBytes > 0 {
			c.Shards = min(16, 1<<(max(bits.Len64(uint64(c.MaxBytes/shardBytes)), 1)-1))
		}
	}
	if c.Shards < 0 || c.Shards > 1<<16 || c.Shards&(c.Shards-1) != 0 {
		return fmt.Errorf("%d shards: want a power of two up to %d", c.Shards, 1<<16)
	}
	c.Evict = cmp.Or(c.Evict, LRU)
	c.MaxCommandBytes = cmp.Or(c.MaxCommandBytes, 64<<20)
	c.SweepInterval = cmp.Or(c.SweepInterval, 100*time.Millisecond)
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// table is the commands that the server answers.
func (c *Config) table() map[string]command {
	own := aboutConnections()
	if !c.Proxy {
		maps.Copy(own, aboutValues())
	}
	return own
}

// Stats are the figures of a server: those of every cache node, and those that INFO
// tells besides.
type Stats struct {
	sut.CacheFigures
	Expiring int64 // entries that will expire
	Evict    Evict // the policy
	Commands int64 // that were answered, those with an error included
	Conns    int64 // connections that are open
	Accepted int64 // connections that ever were
}

// Server is a cache node.
type Server struct {
	store      *store
	listener   net.Listener
	maxCommand int64
	sweeping   time.Duration
	table      map[string]command
	started    time.Time

	commands, accepted atomic.Int64

	running sync.WaitGroup  // a goroutine for each connection, and the sweep
	open    context.Context // ends when nobody may come any more, by close
	close   func()
	ended   chan struct{} // closed when Serve has nothing left to do

	mu    sync.Mutex
	conns map[*conn]bool // those that are open
}

// New returns a server that has not begun to serve.
func New(c Config) (*Server, error) {
	if err := c.complete(); err != nil {
		return nil, fmt.Errorf("resp: %w", err)
	}
	store, err := newStore(c.MaxBytes, c.Evict, c.Shards, c.Seed, c.Now)
	if err != nil {
		return nil, fmt.Errorf("resp: %w", err)
	}
	open, shut := context.WithCancel(context.Background())
	return &Server{
		store: store, listener: c.Listener, maxCommand: c.MaxCommandBytes, sweeping: c.SweepInterval,
		table: c.table(), started: c.Now(),
		open: open, close: shut, ended: make(chan struct{}), conns: map[*conn]bool{},
	}, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// acceptPause is the time between two attempts to accept a connection when there are
// no file descriptors left, say: without it they would keep a core busy.
const acceptPause = 10 * time.Millisecond

// Serve answers clients until Shutdown, and returns nil then. Call it once.
func (s *Server) Serve() error {
	defer close(s.ended)
	defer s.running.Wait()
	s.running.Go(s.sweep)
	for {
		conn, err := s.listener.Accept()
		if err == nil {
			s.admit(conn)
			continue
		}
		select {
		case <-s.open.Done():
			return nil
		case <-time.After(acceptPause):
		}
	}
}

// sweep looks for entries that have expired, as long as clients may come.
func (s *Server) sweep() {
	ticker := time.NewTicker(s.sweeping)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			s.store.sweep()
		case <-s.open.Done():
			return
		}
	}
}

// admit serves a connection, unless it came too late.
func (s *Server) admit(accepted net.Conn) {
	c := s.newConn(accepted)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open.Err() != nil {
		_ = c.Close()
		return
	}
	s.conns[c] = true
	s.accepted.Add(1)
	s.running.Go(func() {
		c.serve()
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.conns, c)
	})
}

// Shutdown stops listening, lets each connection finish the commands that were
// read from it, and closes it. Connections that are not finished when the context
// ends are closed as they are, and the error is the context's. Serve returns
// afterwards.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.close()
	_ = s.listener.Close() // it may be closed already
	for c := range s.conns {
		// The commands that were read are answered before the next read meets this.
		_ = c.SetReadDeadline(time.Unix(1, 0))
	}
	s.mu.Unlock()
	select {
	case <-s.ended:
		return nil
	case <-ctx.Done():
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close()
	}
	return fmt.Errorf("resp: %w", ctx.Err())
}

// Stats returns the figures since the start or the last CONFIG RESETSTAT.
func (s *Server) Stats() Stats {
	stats := s.store.stats()
	stats.Commands, stats.Accepted = s.commands.Load(), s.accepted.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	stats.Conns = int64(len(s.conns))
	return stats
}
