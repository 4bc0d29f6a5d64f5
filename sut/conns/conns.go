// Package conns bounds the connections of an HTTP server.
//
// Past the bound the server neither queues nor hangs. Connections that nobody
// uses are closed to make room, as nginx does with what it calls reusable ones:
// the longest idle first, then those that have been silent since they were
// opened. When there are none, the new one is served just long enough to be told
// 503 with Retry-After; for that there are a few places besides the bound. What
// counts is connections, not requests: a client that sends its body slowly holds
// one all the time, whatever its request will cost.
//
// It reads nothing and answers nothing itself. The order of calls is New, Attach
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
	// patience is how long a refused connection is waited for to ask, and how
	// long any other may be silent before it counts as unused.
	patience = time.Second

	// places is how many refused connections there may be at once. For one more,
	// the oldest that has asked for nothing within grace makes room; while there
	// is none, the next one waits to be accepted. So silent ones keep who asks
	// waiting no longer than grace for each such number of them, and a burst of
	// honest ones is answered in turn.
	places = 256
	grace  = 100 * time.Millisecond

	// looks is how many unused connections are looked at for one that no request
	// has arrived on.
	looks = 16
)

// Bound is the bound of one server.
type Bound struct {
	most    int
	refused prometheus.Counter
	closed  prometheus.Counter

	mu      sync.Mutex
	changed sync.Cond
	over    bool      // the listener is closed
	open    int       // connections within the bound
	past    int       // connections that are being refused
	idle    list.List // of *conn between two requests, the longest idle first
	silent  list.List // of *conn that have not said anything yet, the oldest first
	unasked list.List // the same of those that are being refused
}

// New returns a bound of that many connections, and puts its figures into the
// registry: stagebench_http_connections_open, _idle, _refused_total
// and _closed_idle_total.
func New(most int, registry prometheus.Registerer) (*Bound, error) {
	if most < 1 {
		return nil, fmt.Errorf("connections: a bound of %d: want 1 or more", most)
	}
	auto := promauto.With(registry)
	b := &Bound{
		most: most,
		refused: auto.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_http_connections_refused_total",
			Help: "Connections past the bound, answered 503 unless they asked for the host's health.",
		}),
		closed: auto.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_http_connections_closed_idle_total",
			Help: "Idle and silent connections closed to make room for new ones.",
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
	gauge("stagebench_http_connections_open", "Connections within the bound.", func() int { return b.open })
	gauge("stagebench_http_connections_idle", "Connections within the bound that wait for their next request.", b.idle.Len)
	return b, nil
}

// Listen returns a listener whose connections are counted. A bound has one.
func (b *Bound) Listen(inner net.Listener) net.Listener { return listener{inner, b} }

type listener struct {
	net.Listener
	bound *Bound
}

// Accept refuses nobody: who is past the bound is told so over HTTP.
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

// Close implements net.Listener, and ends an Accept that waits for a place.
func (l listener) Close() error {
	l.bound.mu.Lock()
	l.bound.over = true
	l.bound.changed.Broadcast()
	l.bound.mu.Unlock()
	return l.Listener.Close()
}

// enter counts a connection, makes room for it, or marks it as refused. It
// returns nil when the listener was closed meanwhile.
func (b *Bound) enter(accepted net.Conn) *conn {
	c := &conn{Conn: accepted, bound: b, since: time.Now()}
	b.mu.Lock()
	defer b.mu.Unlock()
	for {
		switch {
		case b.over:
			return nil
		case b.open < b.most || b.dropOne(&b.idle, 0) || b.dropOne(&b.silent, patience):
			b.open++
			c.wait(&b.silent)
			return c
		case b.past < places || b.dropOne(&b.unasked, grace):
			b.past++
			c.refused = true
			b.refused.Inc()
			c.wait(&b.unasked)
			_ = c.SetReadDeadline(time.Time{}) // the bounded one; an error shows in the first Read
			return c
		}
		// Those that are silent grow old without a word.
		look := time.AfterFunc(grace, b.changed.Signal)
		b.changed.Wait()
		look.Stop()
	}
}

// dropOne closes the first of a list of unused connections that is of that age at
// least and that no request has arrived on. Its server sees that and does the
// rest. The caller holds the mutex.
func (b *Bound) dropOne(unused *list.List, age time.Duration) bool {
	place := unused.Front()
	for looked := 0; place != nil && looked < looks; looked++ {
		c := place.Value.(*conn)
		if age > 0 && time.Since(c.since) < age {
			return false // those after it are younger
		}
		if !arriving(c.Conn) {
			b.leave(c)
			b.closed.Inc()
			_ = c.Conn.Close() // nobody is waiting for anything on it
			return true
		}
		place = place.Next()
	}
	return false
}

// leave stops counting a connection. The caller holds the mutex.
func (b *Bound) leave(c *conn) {
	if c.gone {
		return
	}
	c.gone = true
	c.use()
	if c.refused {
		b.past--
	} else {
		b.open--
	}
	b.changed.Signal()
}

// conn is one connection.
type conn struct {
	net.Conn
	bound   *Bound
	since   time.Time // when it was accepted
	refused bool
	unused  atomic.Bool // it is in one of the bound's lists

	// Guarded by the bound's mutex.
	gone  bool
	among *list.List    // the list that it is in; nil = it works
	place *list.Element // in that list
}

// wait puts it into a list of unused connections. The caller holds the mutex.
func (c *conn) wait(among *list.List) {
	c.among, c.place = among, among.PushBack(c)
	c.unused.Store(true)
}

// use takes it out of its list. The caller holds the mutex.
func (c *conn) use() {
	if c.among != nil {
		c.among.Remove(c.place)
		c.among, c.place = nil, nil
		c.unused.Store(false)
	}
}

// Read implements net.Conn. With the first byte of a request the connection is
// in use; the server says so only when it has the whole header, and a request
// whose connection is closed before that is lost.
func (c *conn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 && c.unused.Load() {
		c.bound.mu.Lock()
		c.use()
		c.bound.mu.Unlock()
	}
	return n, err
}

// SetReadDeadline implements net.Conn. A refused connection holds one of few
// places: it gets no more time than is needed to ask.
func (c *conn) SetReadDeadline(at time.Time) error {
	if last := c.since.Add(patience); c.refused && (at.IsZero() || at.After(last)) {
		at = last
	}
	return c.Conn.SetReadDeadline(at)
}

// Write implements net.Conn. With its answer a refused connection gives its place
// back, though the server may go on reading what the client still sends.
func (c *conn) Write(p []byte) (int, error) {
	n, err := c.Conn.Write(p)
	if c.refused {
		c.forget()
	}
	return n, err
}

// CloseWrite is what the server does before it lingers for an answer to arrive at
// a client that is still sending.
func (c *conn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.forget()
	return c.Conn.Close()
}

func (c *conn) forget() {
	c.bound.mu.Lock()
	defer c.bound.mu.Unlock()
	c.bound.leave(c)
}

// refusedKey is where a request's context says that its connection is one too
// many.
type refusedKey struct{}

// Refused reports whether a request came over a connection past the bound. It is
// to be answered with 503, Retry-After and Connection: close, unless it asks
// whether the server lives: one that is full is not dead.
func Refused(ctx context.Context) bool { return ctx.Value(refusedKey{}) != nil }

// Attach has the bound told of what the server's connections do. It takes the
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
		counted.use()
		switch {
		case state == http.StateClosed || state == http.StateHijacked:
			b.leave(counted)
		case state == http.StateIdle && !counted.gone && !counted.refused:
			counted.wait(&b.idle)
			b.changed.Signal()
		}
	}
}
