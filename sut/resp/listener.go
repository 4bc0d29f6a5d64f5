package resp

import (
	"context"
	"net"
	"sync"
	"time"
)

// listener hands guarded connections to redcon, and ends them in order: redcon by
// itself closes a connection while its commands are being answered.
type listener struct {
	net.Listener
	maxCommand int64
	ended      chan struct{} // closed when redcon may go

	mu       sync.Mutex
	conns    map[*guard]bool
	draining bool
	empty    chan struct{} // closed when draining and the last connection is gone
	end      sync.Once
}

func newListener(l net.Listener, maxCommand int64) *listener {
	return &listener{
		Listener: l, maxCommand: maxCommand, ended: make(chan struct{}),
		conns: map[*guard]bool{}, empty: make(chan struct{}),
	}
}

// Accept waits for a connection. Once the listener drains it returns an error only
// when all connections are gone, as redcon closes what there is upon an error.
func (l *listener) Accept() (net.Conn, error) {
	for pause := time.Millisecond; ; pause = min(2*pause, time.Second) {
		conn, err := l.Listener.Accept()
		if err == nil {
			if g := l.admit(conn); g != nil {
				return g, nil
			}
			_ = conn.Close()
		}
		if l.stopping() {
			<-l.ended
			return nil, net.ErrClosed
		}
		if err != nil {
			// Out of file descriptors, say. Without a pause redcon would ask for ever.
			select {
			case <-time.After(pause):
			case <-l.ended:
			}
		}
	}
}

func (l *listener) admit(conn net.Conn) *guard {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.draining {
		return nil
	}
	g := &guard{Conn: conn, listener: l, parser: parser{maxCommand: l.maxCommand}}
	l.conns[g] = true
	return g
}

func (l *listener) stopping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.draining
}

func (l *listener) open() int64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	return int64(len(l.conns))
}

func (l *listener) leave(g *guard) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if !l.conns[g] {
		return
	}
	delete(l.conns, g)
	if l.draining && len(l.conns) == 0 {
		close(l.empty)
	}
}

// drain stops accepting and reading, and waits until all that was read is answered.
func (l *listener) drain(ctx context.Context) error {
	l.mu.Lock()
	if !l.draining {
		l.draining = true
		_ = l.Listener.Close()
		for g := range l.conns {
			// The commands that were read are answered before the next read meets this.
			_ = g.SetReadDeadline(time.Unix(1, 0))
		}
		if len(l.conns) == 0 {
			close(l.empty)
		}
	}
	l.mu.Unlock()
	defer l.end.Do(func() { close(l.ended) })
	select {
	case <-l.empty:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// guard is a connection that ends when what comes in is no command. redcon parses
// commands, but trusts the lengths in them: a length near the largest integer makes
// it panic, and with it the process; one in the billions makes it count to there.
type guard struct {
	net.Conn
	listener *listener
	parser   parser
	broken   error // what the next Read answers to the client, and returns
}

// Read passes on what belongs to well-formed commands.
func (g *guard) Read(p []byte) (int, error) {
	if g.broken == nil {
		n, err := g.Conn.Read(p)
		good, broken := g.parser.check(p[:n])
		if g.broken = broken; broken == nil || good > 0 {
			return good, err
		}
	}
	_, _ = g.Conn.Write([]byte("-ERR Protocol error: " + g.broken.Error() + "\r\n"))
	return 0, g.broken
}

// Close closes the connection and takes it off the listener's list.
func (g *guard) Close() error {
	g.listener.leave(g)
	return g.Conn.Close()
}
