package cache_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/memcached/memcachedtest"
)

// What memcached does not take is refused, and is not the end of the host.
func TestRefusalOfMemcached(t *testing.T) {
	t.Parallel()
	s := memcachedtest.Start(t, 1<<20)
	c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Address())}, Protocol: cache.Memcached})
	refusals := 0
	refused := func(what string, err error) {
		t.Helper()
		refusals++
		if err == nil || errors.Is(err, cache.ErrUnavailable) {
			t.Errorf("%s: %v", what, err)
		}
		if err := c.Set(t.Context(), "a", []byte("1"), 0); err != nil {
			t.Errorf("after %s: %v", what, err)
		}
	}
	refused("a value of 2 MiB", c.Set(t.Context(), "a", make([]byte, 2<<20), 0))
	for _, key := range []string{"a b", "a\r\nflush_all", strings.Repeat("k", 251), ""} {
		_, _, err := c.Get(t.Context(), key)
		refused(fmt.Sprintf("reading %.20q", key), err)
		refused(fmt.Sprintf("writing %.20q", key), c.Set(t.Context(), key, nil, 0))
		refused(fmt.Sprintf("deleting %.20q", key), c.Delete(t.Context(), key))
	}
	_, _, err := c.Fetch(t.Context(), "photo:1")
	refused("a fetch", err)
	_, err = c.Apply(t.Context(), "photo:1", cache.Write{Like: &cache.Like{Photo: 1, User: 1}})
	refused("a write", err)
	if n := figure(t, registry, "errors_total", "cache-1", "refused"); int(n) != refusals {
		t.Errorf("%v refusals of %d were counted", n, refusals)
	}
}

// The longest times to live are points in time for memcached, and mean the same.
func TestLongLivesInMemcached(t *testing.T) {
	t.Parallel()
	s := memcachedtest.Start(t, 1<<20)
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Address())}, Protocol: cache.Memcached})
	const day = 24 * time.Hour
	for _, ttl := range []time.Duration{time.Hour, 30 * day, 31 * day, 1000 * day} {
		if err := c.Set(t.Context(), "a", []byte("1"), ttl); err != nil {
			t.Fatal(err)
		}
		if _, found, err := c.Get(t.Context(), "a"); err != nil || !found {
			t.Errorf("to live for %v: %v, %v", ttl, found, err)
		}
	}
}

// gate is a memcached that has nothing, and that can hold its answers back and end all
// its connections, as one does that is started anew.
type gate struct {
	net.Listener
	all sync.WaitGroup

	mu       sync.Mutex
	conns    []net.Conn
	accepted int
	closed   chan struct{} // while it is there answers wait until it is closed
}

func newGate(t *testing.T) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{Listener: l}
	g.all.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			g.mu.Lock()
			g.accepted++
			g.conns = append(g.conns, conn)
			g.mu.Unlock()
			g.all.Go(func() {
				for lines := bufio.NewScanner(conn); lines.Scan(); {
					g.mu.Lock()
					closed := g.closed
					g.mu.Unlock()
					if closed != nil {
						<-closed
					}
					_, _ = io.WriteString(conn, "END\r\n")
				}
				_ = conn.Close()
			})
		}
	})
	t.Cleanup(func() { _ = l.Close(); g.open(); g.restart(); g.all.Wait() })
	return g
}

func (g *gate) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = make(chan struct{})
}

func (g *gate) open() {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed != nil {
		close(g.closed)
		g.closed = nil
	}
}

// restart ends all connections.
func (g *gate) restart() {
	g.mu.Lock()
	defer g.mu.Unlock()
	for _, conn := range g.conns {
		_ = conn.Close()
	}
	g.conns = nil
}

func (g *gate) count() int {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.accepted
}

// crowd has n requests at a time, which come over conns connections more, calls during
// when these are there, and returns how many were answered.
func (g *gate) crowd(t *testing.T, c *cache.Client, n, conns int, during func()) (answered int64) {
	t.Helper()
	g.close()
	before := g.count()
	var all sync.WaitGroup
	var good atomic.Int64
	for range n {
		all.Go(func() {
			if _, found, err := c.Get(t.Context(), "a"); err == nil && !found {
				good.Add(1)
			}
		})
	}
	for deadline := time.Now().Add(patience); g.count() < before+conns; {
		if time.Now().After(deadline) {
			t.Errorf("%d connections more, want %d", g.count()-before, conns)
			break
		}
		<-time.After(time.Millisecond)
	}
	during()
	g.open()
	all.Wait()
	if got := g.count() - before; got != conns {
		t.Errorf("%d connections more, want %d", got, conns)
	}
	return good.Load()
}

// There are no more connections than are allowed. Who finds none in time has asked
// nothing, and the host is well.
func TestMemcachedConnsAreBounded(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, g.Addr().String())}, Protocol: cache.Memcached})
	answered := g.crowd(t, c, 100, 64, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		if _, _, err := c.Get(ctx, "a"); !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, cache.ErrUnavailable) {
			t.Errorf("with all connections busy: %v", err)
		}
	})
	if answered != 100 {
		t.Errorf("%d of 100 were answered", answered)
	}
}

// One that is started anew costs a single failure, however many connections there were
// to the one before.
func TestMemcachedStartedAnew(t *testing.T) {
	t.Parallel()
	g := newGate(t)
	c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, g.Addr().String())}, Protocol: cache.Memcached})
	g.crowd(t, c, 10, 10, func() {})
	g.restart()
	if _, _, err := c.Get(t.Context(), "a"); !errors.Is(err, cache.ErrUnavailable) {
		t.Fatalf("got %v", err)
	}
	for deadline := time.Now().Add(patience); ; {
		if _, _, err := c.Get(t.Context(), "a"); err == nil {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("it is never asked again")
		}
	}
	before := figure(t, registry, "errors_total")
	if answered := g.crowd(t, c, 10, 9, func() {}); answered != 10 {
		t.Errorf("%d of 10 were answered", answered)
	}
	if after := figure(t, registry, "errors_total"); after != before {
		t.Errorf("%v more errors", after-before)
	}
}

// The client's figures and the server's agree.
func TestFiguresOfMemcached(t *testing.T) {
	t.Parallel()
	const n = 100
	s := memcachedtest.Start(t, 8<<20)
	c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Address())}, Protocol: cache.Memcached})
	fill(t, c, n)
	read(t, c, 2*n)
	if got := s.Figures(t); got.Hits != n || got.Misses != n || got.Entries != n {
		t.Errorf("got %+v", got)
	}
	if hits, misses := figure(t, registry, "reads_total", "hit"), figure(t, registry, "reads_total", "miss"); hits != n || misses != n {
		t.Errorf("the client has %v hits and %v misses", hits, misses)
	}
}
