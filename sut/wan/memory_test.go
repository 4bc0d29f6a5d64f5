package wan

import (
	"context"
	"io"
	"log/slog"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// memoryConn is one end of a connection in memory, for tests with a fake clock. A Write returns when the peer has read
// its bytes, so nothing is in transit outside of the relay.
type memoryConn struct {
	net.Conn // nil: methods that the relay does not use
	in       *io.PipeReader
	out      *io.PipeWriter
	mu       sync.Mutex
	linger   bool // a close sends FIN; otherwise it sends RST
}

func memoryPair() (a, b *memoryConn) {
	ar, bw := io.Pipe()
	br, aw := io.Pipe()
	return &memoryConn{in: ar, out: aw, linger: true}, &memoryConn{in: br, out: bw, linger: true}
}

func (c *memoryConn) Read(p []byte) (int, error)  { return c.in.Read(p) }
func (c *memoryConn) Write(p []byte) (int, error) { return c.out.Write(p) }
func (c *memoryConn) CloseWrite() error           { return c.out.Close() }
func (c *memoryConn) RemoteAddr() net.Addr        { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9), Port: 1} }

func (c *memoryConn) SetLinger(seconds int) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.linger = seconds != 0
	return nil
}

func (c *memoryConn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.linger {
		_ = c.out.Close()
	} else {
		_ = c.out.CloseWithError(syscall.ECONNRESET)
	}
	return c.in.CloseWithError(syscall.ECONNRESET)
}

// memoryListener accepts the connections of a channel.
type memoryListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *memoryListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *memoryListener) Addr() net.Addr { return &net.TCPAddr{} }

func (l *memoryListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

// network is a relay in a bubble of synctest, with its clients and one origin in memory.
type network struct {
	t       *testing.T
	relay   *Relay
	began   time.Time
	clients *memoryListener
	origins chan *memoryConn // the origin's ends of its connections
	refuse  error            // if set, the origin refuses connections; set before the first connection
	served  chan error
}

func newNetwork(t *testing.T, rtt time.Duration) *network {
	t.Helper()
	relay, err := New(Config{
		RTT: rtt, Origins: []sut.Peer{{Node: "origin-1", Address: "127.0.0.1:1"}}, MaxConns: 8,
		Log: slog.New(slog.DiscardHandler),
	})
	if err != nil {
		t.Fatal(err)
	}
	relay.alarms = func() (alarms, error) { return timers{}, nil } // with the fake clock
	n := &network{
		t: t, relay: relay, began: time.Now(), origins: make(chan *memoryConn, 8), served: make(chan error, 1),
		clients: &memoryListener{conns: make(chan net.Conn), done: make(chan struct{})},
	}
	relay.dial = func(context.Context, net.Addr, string) (conn, error) {
		if n.refuse != nil {
			return nil, n.refuse
		}
		ours, theirs := memoryPair()
		n.origins <- theirs
		return ours, nil
	}
	go func() { n.served <- relay.Serve(n.clients) }()
	return n
}

// dial connects a client.
func (n *network) dial() *memoryConn {
	ours, theirs := memoryPair()
	n.clients.conns <- theirs
	return ours
}

// at checks the time since the network was made.
func (n *network) at(what string, want time.Duration) {
	n.t.Helper()
	if got := time.Since(n.began); got != want {
		n.t.Errorf("%s after %v, want %v", what, got, want)
	}
}

// reads checks what arrives at one end next, and when.
func (n *network) reads(c *memoryConn, want string, at time.Duration) {
	n.t.Helper()
	buffer := make([]byte, len(want))
	if _, err := io.ReadFull(c, buffer); err != nil || string(buffer) != want {
		n.t.Errorf("read %q, %v; want %q", buffer, err, want)
	}
	n.at(want, at)
}

// ends checks that the other side has ended, how, and when.
func (n *network) ends(c *memoryConn, want error, at time.Duration) {
	n.t.Helper()
	if k, err := c.Read(make([]byte, 1)); k != 0 || err != want {
		n.t.Errorf("read %d bytes, %v; want the end %v", k, err, want)
	}
	n.at("the end", at)
}

// sends sends a text.
func (n *network) sends(c *memoryConn, text string) {
	n.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		n.t.Errorf("send %q: %v", text, err)
	}
}

// stop shuts the relay down and checks that it has no connection any more.
func (n *network) stop() {
	n.t.Helper()
	if err := n.relay.Shutdown(n.t.Context()); err != nil {
		n.t.Error(err)
	}
	if err := <-n.served; err != nil {
		n.t.Error(err)
	}
	if f := n.relay.Figures(); f.Active != 0 {
		n.t.Errorf("%+v after the end, want no active connection", f)
	}
}
