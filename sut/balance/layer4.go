package balance

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// forwarder balances connections. It connects each client with a host and forwards
// bytes both ways until both sides have closed. It does not interpret the bytes, and
// it has no idle timeout.
type forwarder struct {
	pool         *pool
	dialer       net.Dialer
	hashes       bool // the policy needs the hash of the client's address
	maxTunnels   int  // 0 = no limit
	redispatched *atomic.Uint64

	accepted, failed atomic.Uint64 // connections
	in, out          atomic.Uint64 // bytes from clients, to clients
	tunnelling       sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	tunnels  map[*tunnel]struct{} // open tunnels of all hosts
	stopped  bool
}

// serve accepts clients. It returns http.ErrServerClosed after shutdown.
func (f *forwarder) serve(listener net.Listener) error {
	f.mu.Lock()
	f.listener = listener
	stopped := f.stopped
	f.mu.Unlock()
	if stopped {
		return errors.Join(http.ErrServerClosed, listener.Close())
	}
	for {
		conn, err := listener.Accept()
		switch {
		case err == nil:
			f.begin(conn.(*net.TCPConn))
		case errors.Is(err, net.ErrClosed):
			return http.ErrServerClosed
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
			// These errors are temporary. Clients wait in the kernel's accept queue.
			f.pool.log.Warn("connection not accepted, trying again", "cause", err, "pause", acceptPause)
			time.Sleep(acceptPause)
		default:
			return fmt.Errorf("balance: accept: %w", err)
		}
	}
}

// acceptPause is the pause before the next accept after a temporary error.
const acceptPause = 20 * time.Millisecond

// begin starts a tunnel for a new client.
func (f *forwarder) begin(client *net.TCPConn) {
	f.accepted.Add(1)
	ctx, cancel := context.WithCancel(context.Background())
	t := &tunnel{client: client, cancel: cancel}
	f.mu.Lock()
	defer f.mu.Unlock()
	full := f.maxTunnels > 0 && len(f.tunnels) >= f.maxTunnels
	if full {
		f.failed.Add(1)
	}
	if f.stopped || full {
		t.close()
		return
	}
	f.tunnels[t] = struct{}{}
	f.tunnelling.Go(func() {
		f.carry(ctx, t)
		f.mu.Lock()
		delete(f.tunnels, t)
		f.mu.Unlock()
	})
}

// carry connects a client with a host, forwards bytes, and returns when both sides
// have closed.
func (f *forwarder) carry(ctx context.Context, t *tunnel) {
	defer t.close()
	u := f.connect(ctx, t)
	if u == nil {
		f.failed.Add(1)
		return
	}
	if !f.pool.attach(u, t) {
		t.close() // the host went down before attach, so change could not close this tunnel
	}
	t.pass(&f.in, &f.out, func(took time.Duration) { f.pool.answered(u, took) })
	f.pool.detach(u, t)
	f.pool.release(u, noVerdict, "", 0)
}

// connect connects to a host, and to another one when the first is unreachable. It
// returns nil when no host is reachable or ctx ends.
func (f *forwarder) connect(ctx context.Context, t *tunnel) *upstream {
	want := pick{}
	if f.hashes {
		want.client = hashAddress(t.client.RemoteAddr().String())
	}
	routes := f.pool.routes.Load()
	for {
		u := f.pool.acquire(routes.all(), want)
		if u == nil {
			now := f.pool.routes.Load()
			if now == routes {
				return nil
			}
			routes = now // the members have changed, and may include hosts that are up
			continue
		}
		began := time.Now()
		conn, err := f.dialer.DialContext(ctx, "tcp", u.address)
		switch {
		case err == nil:
			t.setHost(conn.(*net.TCPConn))
			return u
		case ctx.Err() != nil:
			f.pool.release(u, noVerdict, "", 0)
			return nil
		}
		f.pool.unreachable(u, err, time.Since(began))
		want.tried = append(want.tried, u)
		f.redispatched.Add(1)
	}
}

// shutdown stops accepting clients and waits for the open connections. When ctx ends
// first, it closes the remaining ones and returns the error of ctx.
func (f *forwarder) shutdown(ctx context.Context) error {
	f.mu.Lock()
	f.stopped = true
	var err error
	if f.listener != nil {
		err = f.listener.Close()
	}
	f.mu.Unlock()
	done := make(chan struct{})
	go func() {
		f.tunnelling.Wait()
		close(done)
	}()
	select {
	case <-done:
		return err
	case <-ctx.Done():
	}
	f.mu.Lock()
	for t := range f.tunnels {
		t.close()
	}
	f.mu.Unlock()
	<-done
	return errors.Join(err, ctx.Err())
}

// status returns the counts of connections and bytes.
func (f *forwarder) status() *sut.ConnectionStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &sut.ConnectionStatus{
		Accepted: f.accepted.Load(), Active: len(f.tunnels), Failed: f.failed.Load(),
		BytesIn: f.in.Load(), BytesOut: f.out.Load(),
	}
}

// tunnel is a client's connection together with its connection to a host.
type tunnel struct {
	client *net.TCPConn
	cancel context.CancelFunc // cancels a connection attempt to a host

	mu     sync.Mutex
	host   *net.TCPConn // nil until it is connected
	closed bool
}

// close closes both connections. Further calls do nothing.
func (t *tunnel) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.closed = true
	t.cancel()
	_ = t.client.Close() // nothing can be done about an error
	if t.host != nil {
		_ = t.host.Close()
	}
}

// setHost sets the connection to the host. It closes the connection if the tunnel is
// closed already.
func (t *tunnel) setHost(host *net.TCPConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.host = host
	if t.closed {
		_ = host.Close()
	}
}

// pass forwards bytes both ways until both sides have closed. When the first bytes of
// the host arrive, it calls answered with the time since the first bytes of the
// client, or since the start when the host sends first.
func (t *tunnel) pass(in, out *atomic.Uint64, answered func(took time.Duration)) {
	began := time.Now()
	var asked atomic.Int64 // first bytes of the client, in ns since began
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.direction(t.host, t.client, in, func() { asked.Store(int64(time.Since(began))) })
	}()
	t.direction(t.client, t.host, out, func() { answered(time.Since(began) - time.Duration(asked.Load())) })
	<-done
}

const (
	// relayBuffer is the buffer size of one direction, in bytes. It is small because
	// idle connections keep their buffers and most messages are short.
	relayBuffer = 4 << 10
	// spliceBytes is the number of bytes that the kernel forwards (splice) before the
	// next count. It is used after a message filled the buffer.
	spliceBytes = 1 << 20
)

// direction forwards bytes from one side to the other, and then the end of the
// stream. It calls first before it forwards the first bytes. After an error it closes
// both connections: a half-open tunnel would stay open for ever.
func (t *tunnel) direction(to, from *net.TCPConn, bytes *atomic.Uint64, first func()) {
	buffer := make([]byte, relayBuffer)
	for began := false; ; {
		n, err := from.Read(buffer)
		if n > 0 {
			if !began {
				began = true
				first()
			}
			bytes.Add(uint64(n))
			if _, failure := to.Write(buffer[:n]); failure != nil {
				t.close()
				return
			}
		}
		if n == len(buffer) && err == nil {
			var copied int64
			copied, err = io.CopyN(to, from, spliceBytes)
			bytes.Add(uint64(copied))
		}
		switch {
		case err == io.EOF:
			_ = to.CloseWrite() // fails only when the other direction has failed
			return
		case err != nil:
			t.close()
			return
		}
	}
}
