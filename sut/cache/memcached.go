package cache

import (
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/bradfitz/gomemcache/memcache"
	"golang.org/x/sync/semaphore"

	"github.com/stagebench/stagebench/sut"
)

// memcachedWire is a connection pool to a host that speaks the memcached text protocol.
// The library supports neither contexts nor a limit on connections. So each connection
// has a library client of its own, and the deadline of the current request bounds it.
type memcachedWire struct {
	address tcpAddress
	timeout time.Duration
	secret  sut.Secret          // "" = the host needs none
	inUse   *semaphore.Weighted // connections in use

	mu   sync.Mutex
	idle []*pooledConn // most recently used last
}

func newMemcachedWire(address string, c Config) *memcachedWire {
	return &memcachedWire{
		address: tcpAddress(address), timeout: c.Timeout, secret: c.Secret, inUse: semaphore.NewWeighted(maxConns),
	}
}

// errPoolTimeout means that no connection became free in time.
var errPoolTimeout = errors.New("timed out waiting for a connection of the pool")

// errNoRecords means that memcached cannot load or write records itself.
var errNoRecords = fmt.Errorf("memcached: %w", errors.ErrUnsupported)

func (w *memcachedWire) classify(err error) outcome {
	switch {
	case errors.Is(err, errPoolTimeout):
		return poolBusy
	case errors.Is(err, errNotSent):
		return notConnected
	case errors.Is(err, memcache.ErrCacheMiss), errors.Is(err, memcache.ErrMalformedKey),
		errors.Is(err, errNoRecords), isErrorReply(err):
		return answered
	}
	return noAnswer
}

// isErrorReply reports whether a host has sent one of the three error replies of the
// protocol. The library has no error values for them, only their text.
func isErrorReply(err error) bool {
	words := []string{`"SERVER_ERROR `, `"CLIENT_ERROR `, `"ERROR\r\n"`}
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(err.Error(), word) })
}

func (w *memcachedWire) get(ctx context.Context, key string) (value []byte, found bool, err error) {
	err = w.withConn(ctx, func(c *memcache.Client) error {
		item, err := c.Get(key)
		if err == nil {
			value = item.Value
		}
		return err
	})
	if errors.Is(err, memcache.ErrCacheMiss) {
		return nil, false, nil
	}
	return value, err == nil, err
}

func (w *memcachedWire) set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	return w.withConn(ctx, func(c *memcache.Client) error {
		return c.Set(&memcache.Item{Key: key, Value: value, Expiration: expiration(ttl, time.Now())})
	})
}

func (w *memcachedWire) delete(ctx context.Context, key string) error {
	err := w.withConn(ctx, func(c *memcache.Client) error { return c.Delete(key) })
	if errors.Is(err, memcache.ErrCacheMiss) {
		return nil
	}
	return err
}

func (w *memcachedWire) fetch(context.Context, string) (value []byte, hit bool, err error) {
	return nil, false, errNoRecords
}

func (w *memcachedWire) apply(context.Context, string, Write) (version int64, err error) {
	return 0, errNoRecords
}

// maxRelative is the longest time to live that the protocol accepts as a duration. It
// interprets a larger number as a Unix time.
const maxRelative = 30 * 24 * time.Hour

// expiration encodes a time to live for the protocol, in whole seconds. The server has a
// clock of whole seconds, so a value may expire up to a second early.
func expiration(ttl time.Duration, now time.Time) int32 {
	seconds := int64((ttl + time.Second - 1) / time.Second)
	if ttl > maxRelative {
		seconds += now.Unix()
	}
	return int32(min(seconds, math.MaxInt32))
}

// withConn calls do with a connection that no other request uses.
func (w *memcachedWire) withConn(ctx context.Context, do func(*memcache.Client) error) error {
	if err := w.acquire(ctx); err != nil {
		return err
	}
	defer w.inUse.Release(1)
	c := w.takeIdle()
	defer w.putIdle(c)
	c.deadline, _ = ctx.Deadline()
	err := do(c.client)
	if err != nil && w.classify(err) == noAnswer && contextErr(ctx) == nil {
		// After a restart of the host all idle connections are dead. Without this, each
		// of them would fail one more request.
		w.close()
	}
	return err
}

// acquire waits until another connection may be used. It waits at most the timeout.
func (w *memcachedWire) acquire(ctx context.Context) error {
	if w.inUse.TryAcquire(1) {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	if err := w.inUse.Acquire(bounded, 1); err != nil {
		return fmt.Errorf("%w: %w", errPoolTimeout, err)
	}
	return nil
}

// takeIdle returns an idle connection, or a new one. A new one connects on first use.
func (w *memcachedWire) takeIdle() *pooledConn {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.idle); n > 0 {
		c := w.idle[n-1]
		w.idle = w.idle[:n-1]
		return c
	}
	return newPooledConn(w.address, w.timeout, w.secret)
}

// putIdle returns a connection to the pool.
func (w *memcachedWire) putIdle(c *pooledConn) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle = append(w.idle, c)
}

// close closes all idle connections.
func (w *memcachedWire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, c := range w.idle {
		_ = c.client.Close() // an idle connection has no pending request
	}
	w.idle = nil
}

// pooledConn is a library client with one connection. One request uses it at a time.
type pooledConn struct {
	client   *memcache.Client
	deadline time.Time // of the current request; zero = none
}

func newPooledConn(address tcpAddress, timeout time.Duration, secret sut.Secret) *pooledConn {
	c := &pooledConn{client: memcache.NewFromSelector(address)}
	c.client.Timeout, c.client.MaxIdleConns = timeout, 1
	c.client.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if !c.deadline.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, c.deadline)
			defer cancel()
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errNotSent, err)
		}
		bounded := boundedConn{conn, c}
		if secret != "" {
			// The library sets the deadline only after this function.
			if err := errors.Join(bounded.SetDeadline(time.Now().Add(timeout)), secret.ShowMemcached(bounded)); err != nil {
				return nil, errors.Join(fmt.Errorf("%w: %w", errNotSent, err), conn.Close())
			}
		}
		return bounded, nil
	}
	return c
}

// boundedConn is a network connection. The library sets its deadline by a fixed timeout;
// an earlier deadline of the current request takes precedence.
type boundedConn struct {
	net.Conn
	pooled *pooledConn
}

// SetDeadline implements net.Conn.
func (c boundedConn) SetDeadline(t time.Time) error {
	if d := c.pooled.deadline; !d.IsZero() && d.Before(t) {
		t = d
	}
	return c.Conn.SetDeadline(t)
}

// tcpAddress is a host:port. It implements the server selector of the library, and
// selects itself for all keys.
type tcpAddress string

// Network implements net.Addr.
func (tcpAddress) Network() string { return "tcp" }

// String implements net.Addr.
func (a tcpAddress) String() string { return string(a) }

// PickServer implements memcache.ServerSelector.
func (a tcpAddress) PickServer(string) (net.Addr, error) { return a, nil }

// Each implements memcache.ServerSelector.
func (a tcpAddress) Each(do func(net.Addr) error) error { return do(a) }
