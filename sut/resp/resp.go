// Package resp is the embedded cache node. It keeps keys and opaque values in memory
// and implements the cache commands of the Redis protocol. Any Redis client can use it,
// and Redis can replace it.
//
// A budget in bytes limits the memory of keys, values and entry overhead. The server
// never exceeds it: an eviction policy decides which entry is removed. An entry expires
// when a client reads it after its time, or when the periodic sweep finds it. Nothing is
// stored on disk. The keys are divided into shards. Each shard has its own lock and an
// equal share of the budget, so a value larger than one share is refused.
//
// The server supports only version 2 of the protocol. It answers HELLO with an error,
// and clients then fall back to version 2. It has no encryption, so it accepts only
// loopback addresses.
//
// Times are in ms, on the wire and internally. All methods of Server may be called
// concurrently. Usual order of calls: New, Extend, Serve, Shutdown.
package resp

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Config is the configuration of a server.
type Config struct {
	// Listener accepts clients on a loopback address. The server closes it.
	Listener net.Listener
	MaxBytes int64 // budget for keys, values and their overhead; 0 = no limit
	Evict    Evict // the eviction policy; "" = LRU
	// Proxy makes a server without keys, in front of another one. It knows only the
	// commands of a connection, such as PING, and the commands of Extend.
	Proxy bool
	// Secret is the password of every client; "" = clients need none.
	Secret sut.Secret
	Now    func() time.Time // the clock for expiry; nil = time.Now
}

// setDefaults fills in defaults and validates the configuration.
func (c *Config) setDefaults() error {
	if c.Listener == nil {
		return errors.New("no listener")
	}
	if address, ok := c.Listener.Addr().(*net.TCPAddr); !ok || !address.IP.IsLoopback() {
		return fmt.Errorf("listens on %v: want a loopback address, because there is no encryption", c.Listener.Addr())
	}
	if c.MaxBytes < 0 {
		return fmt.Errorf("MaxBytes is %d: want 0 or more", c.MaxBytes)
	}
	c.Evict = cmp.Or(c.Evict, LRU)
	if c.Now == nil {
		c.Now = time.Now
	}
	return nil
}

// commands returns the built-in commands of the server.
func (c *Config) commands() map[string]command {
	all := connectionCommands()
	if !c.Proxy {
		maps.Copy(all, keyCommands())
	}
	return all
}

// Stats are the metrics of a server: those of all cache nodes, and those that only INFO
// reports.
type Stats struct {
	sut.CacheFigures
	Expiring int64 // entries with a time to live
	Evict    Evict // the eviction policy
	Commands int64 // answered commands, including errors
	Conns    int64 // open connections
	Accepted int64 // connections accepted since the start
}

// Server is a cache node.
type Server struct {
	store    *store
	secret   sut.Secret // "" = clients need none
	listener net.Listener
	commands map[string]command // by name in lower case
	started  time.Time

	answered, accepted atomic.Int64 // commands, connections
	unfinished         unfinished

	running  sync.WaitGroup  // one goroutine for each connection, and the sweep
	open     context.Context // canceled by shutDown; no connection is accepted after that
	shutDown context.CancelFunc
	ended    chan struct{} // closed when Serve returns

	mu    sync.Mutex
	conns map[*conn]bool // open connections
}

// New returns a server. Call Serve to start it.
func New(c Config) (*Server, error) {
	if err := c.setDefaults(); err != nil {
		return nil, fmt.Errorf("resp: %w", err)
	}
	store, err := newStore(c.MaxBytes, c.Evict, shardsFor(c.MaxBytes), c.Now)
	if err != nil {
		return nil, fmt.Errorf("resp: %w", err)
	}
	open, shutDown := context.WithCancel(context.Background())
	return &Server{
		store: store, secret: c.Secret, listener: c.Listener, commands: c.commands(), started: c.Now(),
		open: open, shutDown: shutDown, ended: make(chan struct{}), conns: map[*conn]bool{},
	}, nil
}

// Addr returns the address of the listener.
func (s *Server) Addr() net.Addr { return s.listener.Addr() }

// acceptPause is the pause after Accept has failed, for example because there are no
// more file descriptors. Without it, the retries would use a whole core.
const acceptPause = 10 * time.Millisecond

// Serve answers clients until Shutdown, and then returns nil. Call it once.
func (s *Server) Serve() error {
	defer close(s.ended)
	defer s.running.Wait()
	s.running.Go(s.sweep)
	for {
		conn, err := s.listener.Accept()
		if err == nil {
			s.serveConn(conn)
			continue
		}
		select {
		case <-s.open.Done():
			return nil
		case <-time.After(acceptPause):
		}
	}
}

// sweepInterval is the time between two sweeps for expired entries.
const sweepInterval = 100 * time.Millisecond

// sweep removes expired entries at each interval until Shutdown.
func (s *Server) sweep() {
	ticker := time.NewTicker(sweepInterval)
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

// maxConns is the maximum number of connections. The web tier needs at most 1024: 16 hosts with 64 connections each.
// Each takes up to 112 KiB: two buffers, and a command of freeBytes.
const maxConns = 2048

// serveConn serves a connection in a new goroutine. After Shutdown it closes the
// connection.
func (s *Server) serveConn(accepted net.Conn) {
	c := s.newConn(accepted)
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxConns {
		// The reply fits into the socket's buffer, so this does not wait for the client.
		_, _ = accepted.Write([]byte("-ERR max number of clients reached\r\n"))
	}
	if s.open.Err() != nil || len(s.conns) >= maxConns {
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

// Shutdown stops the listener. It waits until each connection has answered the commands
// that it has read, and closes the connection. When ctx ends first, it closes the
// remaining connections at once and returns the error of ctx. Serve returns afterwards.
func (s *Server) Shutdown(ctx context.Context) error {
	s.mu.Lock()
	s.shutDown()
	_ = s.listener.Close() // an error means that it was closed before
	for c := range s.conns {
		// This ends only the next read, so commands that were already read are answered.
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

// Stats returns the metrics. CONFIG RESETSTAT resets the counters of hits, misses,
// evictions and expiries.
func (s *Server) Stats() Stats {
	stats := s.store.stats()
	stats.Commands, stats.Accepted = s.answered.Load(), s.accepted.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	stats.Conns = int64(len(s.conns))
	return stats
}
