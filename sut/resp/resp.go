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

	"github.com/tidwall/redcon"

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
	// Front has a server answer commands about the connection (PING and the like) only,
	// besides those that it is given by Extend: it stands before another one, and holds
	// nothing itself.
	Front bool
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
	if !c.Front {
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
	store    *store
	listener *listener
	sweeping time.Duration
	table    map[string]command
	started  time.Time

	commands, accepted atomic.Int64
	handlers           sync.WaitGroup // of connections
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
	return &Server{
		store: store, listener: newListener(c.Listener, c.MaxCommandBytes), sweeping: c.SweepInterval,
		table: c.table(), started: c.Now(),
	}, nil
}

// Addr is where it listens.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// Serve answers clients until Shutdown, and returns nil then.
func (s *Server) Serve() error {
	ended := make(chan struct{})
	var sweeper sync.WaitGroup
	sweeper.Go(func() {
		ticker := time.NewTicker(s.sweeping)
		defer ticker.Stop()
		for {
			select {
			case <-ticker.C:
				s.store.sweep()
			case <-ended:
				return
			}
		}
	})
	err := redcon.Serve(s.listener, s.handle,
		func(redcon.Conn) bool { s.accepted.Add(1); s.handlers.Add(1); return true },
		func(redcon.Conn, error) { s.handlers.Done() })
	s.handlers.Wait() // redcon has closed their connections
	close(ended)
	sweeper.Wait()
	if err != nil {
		return fmt.Errorf("resp: %w", err)
	}
	return nil
}

// Shutdown stops listening, lets each connection finish the commands that were
// read from it, and closes it. Connections that are not finished when the context
// ends are closed as they are, and the error is the context's. Serve returns
// afterwards.
func (s *Server) Shutdown(ctx context.Context) error {
	if err := s.listener.drain(ctx); err != nil {
		return fmt.Errorf("resp: %w", err)
	}
	return nil
}

// Stats returns the figures since the start or the last CONFIG RESETSTAT.
func (s *Server) Stats() Stats {
	stats := s.store.stats()
	stats.Commands, stats.Accepted, stats.Conns = s.commands.Load(), s.accepted.Load(), s.listener.open()
	return stats
}
