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

// TestMemcachedErrorReplies: after an error reply the host counts as healthy.
func TestMemcachedErrorReplies(t *testing.T) {
	t.Parallel()
	s := memcachedtest.Start(t, 1<<20, "")
	c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Address())}, Protocol: cache.Memcached})
	replies := 0
	wantErrorReply := func(what string, err error) {
		t.Helper()
		replies++
		if err == nil || errors.Is(err, cache.ErrUnavailable) {
			t.Errorf("%s: got %v", what, err)
		}
		if err := c.Set(t.Context(), "a", []byte("1"), 0); err != nil {
			t.Errorf("Set after %s: got %v", what, err)
		}
	}
	wantErrorReply("a value of 2 MiB", c.Set(t.Context(), "a", make([]byte, 2<<20), 0))
	for _, key := range []string{"a b", "a\r\nflush_all", strings.Repeat("k", 251), ""} {
		_, _, err := c.Get(t.Context(), key)
		wantErrorReply(fmt.Sprintf("Get of %.20q", key), err)
		wantErrorReply(fmt.Sprintf("Set of %.20q", key), c.Set(t.Context(), key, nil, 0))
		wantErrorReply(fmt.Sprintf("Delete of %.20q", key), c.Delete(t.Context(), key))
	}
	_, _, err := c.Fetch(t.Context(), "photo:1")
	wantErrorReply("Fetch", err)
	_, err = c.Apply(t.Context(), "photo:1", cache.Write{Like: &cache.Like{Photo: 1, User: 1}})
	wantErrorReply("Apply", err)
	if n := counter(t, registry, "errors_total", "cache-1", "refused"); int(n) != replies {
		t.Errorf("metrics: %v error replies, want %d", n, replies)
	}
}

// TestMemcachedLongTTL: the protocol interprets more than 30 days as a Unix time. The
// value must not expire at once.
func TestMemcachedLongTTL(t *testing.T) {
	t.Parallel()
	s := memcachedtest.Start(t, 1<<20, "")
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Address())}, Protocol: cache.Memcached})
	const day = 24 * time.Hour
	for _, ttl := range []time.Duration{time.Hour, 30 * day, 31 * day, 1000 * day} {
		if err := c.Set(t.Context(), "a", []byte("1"), ttl); err != nil {
			t.Fatal(err)
		}
		if _, found, err := c.Get(t.Context(), "a"); err != nil || !found {
			t.Errorf("time to live %v: got %t, %v", ttl, found, err)
		}
	}
}

// emptyHost is a memcached host without values. It can delay its answers.
type emptyHost struct {
	*listener
	mu       sync.Mutex
	released chan struct{} // answers wait until it is closed; nil = they do not wait
}

func newEmptyHost(t *testing.T) *emptyHost {
	t.Helper()
	h := &emptyHost{}
	h.listener = listen(t, "127.0.0.1:0", func(conn net.Conn) {
		for lines := bufio.NewScanner(conn); lines.Scan(); {
			h.mu.Lock()
			released := h.released
			h.mu.Unlock()
			if released != nil {
				<-released
			}
			_, _ = io.WriteString(conn, "END\r\n")
		}
	})
	t.Cleanup(h.release)
	return h
}

// hold delays all answers until release is called.
func (h *emptyHost) hold() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.released = make(chan struct{})
}

func (h *emptyHost) release() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.released != nil {
		close(h.released)
		h.released = nil
	}
}

// getConcurrently sends requests at the same time and returns the number of answers.
// The client must open exactly newConns connections for them. When all are open, it
// calls during, and releases the answers.
func (h *emptyHost) getConcurrently(
	t *testing.T, c *cache.Client, requests int, newConns int64, during func(),
) (answers int64) {
	t.Helper()
	h.hold()
	before := h.accepted.Load()
	var all sync.WaitGroup
	var misses atomic.Int64
	for range requests {
		all.Go(func() {
			if _, found, err := c.Get(t.Context(), "a"); err == nil && !found {
				misses.Add(1)
			}
		})
	}
	eventually(t, "the new connections", func() bool { return h.accepted.Load() >= before+newConns })
	during()
	h.release()
	all.Wait()
	if got := h.accepted.Load() - before; got != newConns {
		t.Errorf("%d new connections, want %d", got, newConns)
	}
	return misses.Load()
}

// TestMemcachedConnLimit: the client opens at most 64 connections. A request that gets
// no connection before its deadline does not mark the host as down.
func TestMemcachedConnLimit(t *testing.T) {
	t.Parallel()
	h := newEmptyHost(t)
	c, _ := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, h.address())}, Protocol: cache.Memcached})
	const requests = 100
	answers := h.getConcurrently(t, c, requests, 64, func() {
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
		defer cancel()
		_, _, err := c.Get(ctx, "a")
		if !errors.Is(err, context.DeadlineExceeded) || errors.Is(err, cache.ErrUnavailable) {
			t.Errorf("Get while all connections are busy: got %v", err)
		}
	})
	if answers != requests {
		t.Errorf("%d answers for %d requests", answers, requests)
	}
}

// TestMemcachedRestart: a restart of the host fails only one request. The client then
// discards all idle connections.
func TestMemcachedRestart(t *testing.T) {
	t.Parallel()
	h := newEmptyHost(t)
	c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, h.address())}, Protocol: cache.Memcached})
	h.getConcurrently(t, c, 10, 10, func() {})
	h.closeConns()
	if _, _, err := c.Get(t.Context(), "a"); !errors.Is(err, cache.ErrUnavailable) {
		t.Fatalf("first request after the restart: got %v", err)
	}
	eventually(t, "the client to use the host again", func() bool {
		_, _, err := c.Get(t.Context(), "a")
		return err == nil
	})
	before := counter(t, registry, "errors_total")
	// One connection is open already.
	if answers := h.getConcurrently(t, c, 10, 9, func() {}); answers != 10 {
		t.Errorf("%d answers for 10 requests", answers)
	}
	if after := counter(t, registry, "errors_total"); after != before {
		t.Errorf("metrics: %v more errors, want 0", after-before)
	}
}

// TestMemcachedStats: the hits and misses of the client equal those of the server.
func TestMemcachedStats(t *testing.T) {
	t.Parallel()
	const n = 100
	s := memcachedtest.Start(t, 8<<20, "")
	c, registry := connect(t, cache.Config{Hosts: []sut.Peer{peer(0, s.Address())}, Protocol: cache.Memcached})
	fill(t, c, n)
	readAll(t, c, 2*n)
	if got := s.Figures(t); got.Hits != n || got.Misses != n || got.Entries != n {
		t.Errorf("server: %+v, want %d hits, misses and entries", got, n)
	}
	hits, misses := counter(t, registry, "reads_total", "hit"), counter(t, registry, "reads_total", "miss")
	if hits != n || misses != n {
		t.Errorf("client: %v hits and %v misses, want %d of both", hits, misses, n)
	}
}
