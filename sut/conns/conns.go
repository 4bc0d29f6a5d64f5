// Package conns limits the number of connections of an HTTP server.
//
// A full server neither queues nor hangs. To accept a new connection, it closes an unused
// one, as nginx does with reusable connections: first the connection that has been idle
// longest, then the oldest on which no request ever arrived. If no connection is unused,
// the server refuses the new one: it serves it only to answer 503 with Retry-After.
// Refused connections have a small limit of their own. The limits count connections, not
// requests: a client that sends its body slowly holds a connection all the time.
//
// The package itself reads and answers no requests. The order of calls is New, Attach
// before the server serves, Listen. All methods may be called concurrently.
package conns

import (
	"container/list"
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/promauto"
)

const (
	// silenceTimeout is measured from Accept. A refused connection must send its request
	// within this time. A connection within the limit that has sent no request by then
	// may be closed as unused. A connection between two requests may be closed at once.
	silenceTimeout = time.Second

	// There are at most as many refused connections as others, in this range. At the limit, the oldest of them that
	// has sent no request for refusedGrace is closed. If there is none, the next
	// connection waits until it is accepted. So maxRefused silent connections delay a
	// client by refusedGrace at most, and a burst of real requests is answered in order.
	minRefused   = 64
	maxRefused   = 256
	refusedGrace = 100 * time.Millisecond

	// maxProbes limits how many unused connections one call of dropOne checks for
	// unread data.
	maxProbes = 16
)

// Bound limits the connections of one server.
type Bound struct {
	limit        int
	maxRefused   int
	refusedTotal prometheus.Counter
	closedTotal  prometheus.Counter

	mu            sync.Mutex
	changed       sync.Cond
	closed        bool      // the listener is closed
	open          int       // connections within the limit
	refused       int       // connections that are being refused
	idle          list.List // *conn between two requests, the longest idle first
	silent        list.List // *conn without a request yet, the oldest first
	silentRefused list.List // refused *conn without a request yet, the oldest first
}

// New returns a bound with that limit. It registers the metrics
// stagebench_http_connections_open, _idle, _refused_total and _closed_idle_total; nil = no metrics.
func New(limit int, registry prometheus.Registerer) (*Bound, error) {
	if limit < 1 {
		return nil, fmt.Errorf("limit of %d connections: want 1 or more", limit)
	}
	auto := promauto.With(registry)
	b := &Bound{
		limit: limit, maxRefused: min(max(limit, minRefused), maxRefused),
		refusedTotal: auto.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_http_connections_refused_total",
			Help: "Connections over the limit. They were answered 503, except health checks.",
		}),
		closedTotal: auto.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_http_connections_closed_idle_total",
			Help: "Idle and silent connections closed to accept new ones.",
		}),
	}
	b.changed.L = &b.mu
	gauge := func(name, help string, read func() int) {
		auto.NewGaugeFunc(prometheus.GaugeOpts{Name: name, Help: help}, func() float64 {
			b.mu.Lock()
			defer b.mu.Unlock()
			return float64(read())
		})
	}
	gauge("stagebench_http_connections_open", "Connections within the limit.", func() int { return b.open })
	gauge("stagebench_http_connections_idle", "Connections within the limit that wait for their next request.", b.idle.Len)
	return b, nil
}

// Listen returns a listener that counts its connections. It may be called once.
func (b *Bound) Listen(inner net.Listener) net.Listener { return listener{inner, b} }

type listener struct {
	net.Listener
	bound *Bound
}

// Accept implements net.Listener. It also returns connections over the limit: the server
// refuses them over HTTP.
func (l listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	c := l.bound.enter(accepted)
	if c == nil {
		_ = accepted.Close() // nothing was sent over it
		return nil, net.ErrClosed
	}
	return c, nil
}

// Close implements net.Listener. It also ends an Accept that waits because of the limits.
func (l listener) Close() error {
	l.bound.mu.Lock()
	l.bound.closed = true
	l.bound.changed.Broadcast()
	l.bound.mu.Unlock()
	return l.Listener.Close()
}

// enter counts a connection within the limit or as refused. It may close an unused
// connection, and it may wait. It returns nil if the listener is closed.
func (b *Bound) enter(accepted net.Conn) *conn {
	c := &conn{Conn: accepted, bound: b, accepted: time.Now()}
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case b.closed:
			return nil
		case b.open < b.limit || b.dropOne(&b.idle, 0) || b.dropOne(&b.silent, silenceTimeout):
			b.open++
			c.markUnused(&b.silent)
			return c
		case b.refused < b.maxRefused || b.dropOne(&b.silentRefused, refusedGrace):
			b.refused++
			c.refused = true
			b.refusedTotal.Inc()
			c.markUnused(&b.silentRefused)
			_ = c.SetReadDeadline(time.Time{}) // sets the upper bound; an error shows in the first Read
			return c
		}
		// The timer rechecks the age of silent connections, which no event announces.
		recheck := time.AfterFunc(refusedGrace, b.changed.Signal)
		b.changed.Wait()
		recheck.Stop()
	}
}

// dropOne closes the first connection of a list that is at least that old and has no
// unread data. The server then notices the closed connection. It returns false if there
// is none. The caller holds the mutex.
func (b *Bound) dropOne(unused *list.List, age time.Duration) bool {
	element := unused.Front()
	for probes := 0; element != nil && probes < maxProbes; probes++ {
		c := element.Value.(*conn)
		if age > 0 && time.Since(c.accepted) < age {
			return false // all later ones are younger
		}
		if !hasUnreadData(c.Conn) {
			b.leave(c)
			b.closedTotal.Inc()
			_ = c.Conn.Close() // no request is lost, so an error does not matter
			return true
		}
		element = element.Next()
	}
	return false
}

// leave stops counting a connection. The caller holds the mutex.
func (b *Bound) leave(c *conn) {
	if c.left {
		return
	}
	c.left = true
	c.markUsed()
	if c.refused {
		b.refused--
	} else {
		b.open--
	}
	b.changed.Signal()
}

// conn is one connection.
type conn struct {
	net.Conn
	bound    *Bound
	accepted time.Time // time of Accept
	refused  bool
	unused   atomic.Bool // the connection is in a list of the bound

	// Guarded by the bound's mutex.
	left    bool          // the bound no longer counts the connection
	list    *list.List    // the list that has the connection; nil = in use
	element *list.Element // the connection's element of list
}

// markUnused adds the connection to a list of unused ones. The caller holds the mutex.
func (c *conn) markUnused(unused *list.List) {
	c.list, c.element = unused, unused.PushBack(c)
	c.unused.Store(true)
}

// markUsed removes the connection from its list. The caller holds the mutex.
func (c *conn) markUsed() {
	if c.list != nil {
		c.list.Remove(c.element)
		c.list, c.element = nil, nil
		c.unused.Store(false)
	}
}

// Read implements net.Conn. The first byte of a request marks the connection as used. The
// server changes the state only after the complete header. Until then dropOne could close
// the connection, and the request would be lost.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.unused.Load() {
		c.bound.mu.Lock()
		c.markUsed()
		c.bound.mu.Unlock()
	}
	return n, err
}

// SetReadDeadline implements net.Conn. A refused connection gets at most silenceTimeout,
// because refused connections have a small limit.
func (c *conn) SetReadDeadline(at time.Time) error {
	if last := c.accepted.Add(silenceTimeout); c.refused && (at.IsZero() || at.After(last)) {
		at = last
	}
	return c.Conn.SetReadDeadline(at)
}

// Write implements net.Conn. A refused connection no longer counts after its response,
// although the server may still read the rest of the request.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.refused {
		c.leave()
	}
	return n, err
}

// CloseWrite closes the sending direction. The server calls it before it waits for a
// client that is still sending, so that the client gets the response.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.leave()
	return c.Conn.Close()
}

func (c *conn) leave() {
	c.bound.mu.Lock()
	defer c.bound.mu.Unlock()
	c.bound.leave(c)
}

// refusedKey is the key in the context of a request on a refused connection.
type refusedKey struct{}

// Refused reports whether a request came over a connection over the limit. The handler
// must answer such a request with 503, Retry-After and Connection: close. It must answer
// a health check as usual, because a full server is not dead.
func Refused(ctx context.Context) bool { return ctx.Value(refusedKey{}) != nil }

// Attach makes the server report the states of its connections to the bound. It sets the
// server's ConnContext and ConnState.
func (b *Bound) Attach(server *http.Server) {
	server.ConnContext = func(ctx context.Context, c net.Conn) context.Context {
		if counted, ok := c.(*conn); ok && counted.refused {
			return context.WithValue(ctx, refusedKey{}, true)
		}
		return ctx
	}
	server.ConnState = func(c net.Conn, state http.ConnState) {
		counted, ok := c.(*conn)
		if !ok || state == http.StateNew {
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		counted.markUsed()
		switch {
		case state == http.StateClosed || state == http.StateHijacked:
			b.leave(counted)
		case state == http.StateIdle && !counted.left && !counted.refused:
			counted.markUnused(&b.idle)
			b.changed.Signal()
		}
	}
}
