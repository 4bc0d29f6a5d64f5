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
)

// memcachedWire is a host that speaks memcached's text protocol. The library knows no
// contexts and opens as many connections as there are requests, so each connection has
// a client of its own, which bounds it by the context of whoever uses it.
type memcachedWire struct {
	address tcpAddress
	timeout time.Duration
	room    *semaphore.Weighted // of connections

	mu   sync.Mutex
	idle []*link // the last one that was used is at the end
}

func newMemcachedWire(address string, c Config) *memcachedWire {
	return &memcachedWire{address: tcpAddress(address), timeout: c.Timeout, room: semaphore.NewWeighted(int64(c.MaxConns))}
}

// errCrowded says that there was no connection in time.
var errCrowded = errors.New("all connections are busy")

// errNotOfMemcached says that memcached itself loads and writes no records.
var errNotOfMemcached = fmt.Errorf("memcached: %w", errors.ErrUnsupported)

func (w *memcachedWire) judge(err error) verdict {
	switch {
	case errors.Is(err, errCrowded):
		return crowded
	case errors.Is(err, errUnasked):
		return unreached
	case errors.Is(err, memcache.ErrCacheMiss), errors.Is(err, memcache.ErrMalformedKey),
		errors.Is(err, errNotOfMemcached), isRefusal(err):
		return refused
	}
	return unanswered
}

// isRefusal reports whether a host has answered with one of the three errors of the
// protocol, which the library has in the text of its own only.
func isRefusal(err error) bool {
	words := []string{`"SERVER_ERROR `, `"CLIENT_ERROR `, `"ERROR\r\n"`}
	return slices.ContainsFunc(words, func(word string) bool { return strings.Contains(err.Error(), word) })
}

func (w *memcachedWire) get(ctx context.Context, key string) (value []byte, found bool, err error) {
	err = w.with(ctx, func(c *memcache.Client) error {
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
	return w.with(ctx, func(c *memcache.Client) error {
		return c.Set(&memcache.Item{Key: key, Value: value, Expiration: expiration(ttl, time.Now())})
	})
}

func (w *memcachedWire) delete(ctx context.Context, key string) error {
	err := w.with(ctx, func(c *memcache.Client) error { return c.Delete(key) })
	if errors.Is(err, memcache.ErrCacheMiss) {
		return nil
	}
	return err
}

func (w *memcachedWire) fetch(context.Context, string) (value []byte, hit bool, err error) {
	return nil, false, errNotOfMemcached
}

func (w *memcachedWire) apply(context.Context, string, Write) (version int64, err error) {
	return 0, errNotOfMemcached
}

// longestRelative is the longest time to live that the protocol takes as one; more is
// a point in time.
const longestRelative = 30 * 24 * time.Hour

// expiration is a time to live as the protocol has it: whole seconds. The server ends
// them with the second that it counts, so up to a second sooner.
func expiration(ttl time.Duration, now time.Time) int32 {
	seconds := int64((ttl + time.Second - 1) / time.Second)
	if ttl > longestRelative {
		seconds += now.Unix()
	}
	return int32(min(seconds, math.MaxInt32))
}

// with does something over a connection that nobody else uses meanwhile.
func (w *memcachedWire) with(ctx context.Context, do func(*memcache.Client) error) error {
	if err := w.enter(ctx); err != nil {
		return err
	}
	defer w.room.Release(1)
	l := w.take()
	defer w.put(l)
	l.until, _ = ctx.Deadline()
	err := do(l.client)
	if err != nil && w.judge(err) == unanswered && over(ctx) == nil {
		// The connections that wait are of the same host: when it was started anew, each
		// of them would cost a request to find that out.
		w.close()
	}
	return err
}

// enter waits for room for one more connection in use, no longer than an answer may
// take.
func (w *memcachedWire) enter(ctx context.Context) error {
	if w.room.TryAcquire(1) {
		return nil
	}
	bounded, cancel := context.WithTimeout(ctx, w.timeout)
	defer cancel()
	if err := w.room.Acquire(bounded, 1); err != nil {
		return fmt.Errorf("%w: %w", errCrowded, err)
	}
	return nil
}

// take returns a connection; a new one connects when it is used.
func (w *memcachedWire) take() *link {
	w.mu.Lock()
	defer w.mu.Unlock()
	if n := len(w.idle); n > 0 {
		l := w.idle[n-1]
		w.idle = w.idle[:n-1]
		return l
	}
	return newLink(w.address, w.timeout)
}

// put takes a connection back, the next one to be used.
func (w *memcachedWire) put(l *link) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.idle = append(w.idle, l)
}

// close closes all connections that are not in use.
func (w *memcachedWire) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.idle {
		_ = l.client.Close() // what it was asked has been answered
	}
	w.idle = nil
}

// link is a client that has one connection. One request uses it at a time.
type link struct {
	client *memcache.Client
	until  time.Time // when the time of that request is over; zero = never
}

func newLink(address tcpAddress, timeout time.Duration) *link {
	l := &link{client: memcache.NewFromSelector(address)}
	l.client.Timeout, l.client.MaxIdleConns = timeout, 1
	l.client.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
		if !l.until.IsZero() {
			var cancel context.CancelFunc
			ctx, cancel = context.WithDeadline(ctx, l.until)
			defer cancel()
		}
		var d net.Dialer
		conn, err := d.DialContext(ctx, network, address)
		if err != nil {
			return nil, fmt.Errorf("%w: %w", errUnasked, err)
		}
		return boundedConn{conn, l}, nil
	}
	return l
}

// boundedConn is a connection that its client gives the timeout of the library, and
// that ends sooner when the request does.
type boundedConn struct {
	net.Conn
	link *link
}

// SetDeadline implements net.Conn.
func (c boundedConn) SetDeadline(t time.Time) error {
	if until := c.link.until; !until.IsZero() && until.Before(t) {
		t = until
	}
	return c.Conn.SetDeadline(t)
}

// tcpAddress is a host:port as the library wants one, and the choice of it for all
// keys.
type tcpAddress string

// Network implements net.Addr.
func (tcpAddress) Network() string { return "tcp" }

// String implements net.Addr.
func (a tcpAddress) String() string { return string(a) }

// PickServer implements memcache.ServerSelector.
func (a tcpAddress) PickServer(string) (net.Addr, error) { return a, nil }

// Each implements memcache.ServerSelector.
func (a tcpAddress) Each(do func(net.Addr) error) error { return do(a) }
