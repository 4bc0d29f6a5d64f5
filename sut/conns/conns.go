// Package conns bounds the connections of an HTTP server.
//
// Past the bound the server neither queues nor hangs: the longest idle
// connection is closed to make room, as nginx does with its keep-alive
// connections, and when none is idle, the new one is served just long enough to
// be told 503 with Retry-After. What counts is connections, not requests: a
// client that sends its body slowly holds one all the time, whatever its request
// will cost.
//
// The order of calls is New, Attach before the server serves, Listen. All
// methods may be called concurrently.
package conns

import (
	"container/list"
	"context"
	"fmt"
	"net"
	"net/http"
	"sync"

	"github.com/prometheus/client_golang/prometheus"
)

// Bound is the bound of one server.
type Bound struct {
	most    int
	refused prometheus.Counter
	closed  prometheus.Counter

	mu   sync.Mutex
	open int        // connections that are not refused
	idle *list.List // of *conn, the longest idle first
}

// New returns a bound of that many connections, and puts its figures into the
// registry: stagebench_http_connections_open, _idle, _refused_total
// and _closed_idle_total.
func New(most int, registry prometheus.Registerer) (*Bound, error) {
	if most < 1 {
		return nil, fmt.Errorf("connections: a bound of %d: want 1 or more", most)
	}
	b := &Bound{
		most: most, idle: list.New(),
		refused: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_http_connections_refused_total", Help: "Connections past the bound, answered 503.",
		}),
		closed: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "stagebench_http_connections_closed_idle_total", Help: "Idle connections closed to make room for new ones.",
		}),
	}
	open := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "stagebench_http_connections_open", Help: "Connections within the bound.",
	}, func() float64 {
		b.mu.Lock()
		defer b.mu.Unlock()
		return float64(b.open)
	})
	idle := prometheus.NewGaugeFunc(prometheus.GaugeOpts{
		Name: "stagebench_http_connections_idle", Help: "Connections within the bound that wait for a request.",
	}, func() float64 {
		b.mu.Lock()
		defer b.mu.Unlock()
		return float64(b.idle.Len())
	})
	for _, metric := range []prometheus.Collector{open, idle, b.refused, b.closed} {
		if err := registry.Register(metric); err != nil {
			return nil, fmt.Errorf("connections: %w", err)
		}
	}
	return b, nil
}

// conn is one connection.
type conn struct {
	net.Conn
	bound *Bound

	// Guarded by the bound's mutex.
	refused bool
	gone    bool
	place   *list.Element // among the idle ones, nil while it works
}

// Listen returns a listener whose connections are counted.
func (b *Bound) Listen(inner net.Listener) net.Listener { return listener{inner, b} }

type listener struct {
	net.Listener
	bound *Bound
}

// Accept never refuses: who is past the bound is told so over HTTP.
func (l listener) Accept() (net.Conn, error) {
	accepted, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.bound.enter(accepted), nil
}

// enter counts a connection, makes room for it, or marks it as refused.
func (b *Bound) enter(accepted net.Conn) *conn {
	c := &conn{Conn: accepted, bound: b}
	b.mu.Lock()
	var oldest *conn
	switch {
	case b.open < b.most:
		b.open++
	case b.idle.Len() > 0:
		oldest = b.idle.Front().Value.(*conn)
		b.leave(oldest)
		b.open++
		b.closed.Inc()
	default:
		c.refused = true
		b.refused.Inc()
	}
	b.mu.Unlock()
	if oldest != nil {
		_ = oldest.Conn.Close() // its server sees it and says so; there is nothing to be lost
	}
	return c
}

// leave stops counting a connection. The caller holds the mutex.
func (b *Bound) leave(c *conn) {
	if c.gone {
		return
	}
	c.gone = true
	if c.place != nil {
		b.idle.Remove(c.place)
		c.place = nil
	}
	if !c.refused {
		b.open--
	}
}

// Close implements net.Conn.
func (c *conn) Close() error {
	c.bound.mu.Lock()
	c.bound.leave(c)
	c.bound.mu.Unlock()
	return c.Conn.Close()
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
		if !ok {
			return
		}
		b.mu.Lock()
		defer b.mu.Unlock()
		switch state {
		case http.StateIdle:
			if !counted.gone && !counted.refused {
				counted.place = b.idle.PushBack(counted)
			}
		case http.StateActive:
			if counted.place != nil {
				b.idle.Remove(counted.place)
				counted.place = nil
			}
		case http.StateClosed, http.StateHijacked:
			b.leave(counted)
		case http.StateNew:
		}
	}
}
