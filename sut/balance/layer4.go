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

// forwarder balances connections: it connects each client with a host and passes
// bytes both ways until both sides have ended theirs. It reads nothing of them,
// and has no bound on how long a connection may be idle.
type forwarder struct {
	pool         *pool
	dialer       net.Dialer
	hashes       bool // the policy wants to know the client's address
	redispatched *atomic.Uint64

	accepted, failed, in, out atomic.Uint64
	tunnelling                sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	tunnels  map[*tunnel]struct{} // of all hosts
	stopped  bool
}

// serve accepts clients until shutdown, and returns http.ErrServerClosed then.
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
			// It passes, and clients wait in the kernel's queue until then.
			f.pool.log.Warn("a connection could not be accepted", "cause", err)
			time.Sleep(acceptPause)
		default:
			return fmt.Errorf("balance: accept: %w", err)
		}
	}
}

// acceptPause is how long the forwarder waits when it is out of files.
const acceptPause = 20 * time.Millisecond

// begin takes a client over.
func (f *forwarder) begin(client *net.TCPConn) {
	f.accepted.Add(1)
	ctx, cancel := context.WithCancel(context.Background())
	t := &tunnel{client: client, cancel: cancel}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.stopped {
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

// carry connects a client with a host and returns when both have ended.
func (f *forwarder) carry(ctx context.Context, t *tunnel) {
	defer t.close()
	u := f.connect(ctx, t)
	if u == nil {
		f.failed.Add(1)
		return
	}
	if !f.pool.attach(u, t) {
		t.close() // it went down meanwhile, and did not know of this connection
	}
	t.pass(&f.in, &f.out, func(took time.Duration) { f.pool.answered(u, took) })
	f.pool.detach(u, t)
	f.pool.release(u, noVerdict, "", 0)
}

// connect connects to a host, to another one when the first cannot be reached,
// and returns nil when none can.
func (f *forwarder) connect(ctx context.Context, t *tunnel) *upstream {
	e := errand{}
	if f.hashes {
		e.client = hashAddress(t.client.RemoteAddr().String())
	}
	routes := f.pool.routes.Load()
	for {
		u := f.pool.acquire(routes.all(), e)
		if u == nil {
			now := f.pool.routes.Load()
			if now == routes {
				return nil
			}
			routes = now // the membership has changed since, and perhaps all hosts with it
			continue
		}
		began := time.Now()
		conn, err := f.dialer.DialContext(ctx, "tcp", u.address)
		switch {
		case err == nil:
			t.lead(conn.(*net.TCPConn))
			return u
		case ctx.Err() != nil:
			f.pool.release(u, noVerdict, "", 0)
			return nil
		}
		f.pool.unreached(u, err, time.Since(began))
		e.tried = append(e.tried, u)
		f.redispatched.Add(1)
	}
}

// shutdown accepts nobody any more, waits for the connections to end, and closes
// those that are left when ctx ends.
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

// status counts connections.
func (f *forwarder) status() *sut.ConnectionStatus {
	f.mu.Lock()
	defer f.mu.Unlock()
	return &sut.ConnectionStatus{
		Accepted: f.accepted.Load(), Active: len(f.tunnels), Failed: f.failed.Load(),
		BytesIn: f.in.Load(), BytesOut: f.out.Load(),
	}
}

// tunnel is a client's connection and the one to its host.
type tunnel struct {
	client *net.TCPConn
	cancel context.CancelFunc // gives up connecting

	mu     sync.Mutex
	host   *net.TCPConn // nil until it is connected
	closed bool
}

// close breaks both connections; once is enough.
func (t *tunnel) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.closed = true
	t.cancel()
	_ = t.client.Close() // there is nobody to tell
	if t.host != nil {
		_ = t.host.Close()
	}
}

// lead has the tunnel lead to a host. When it was broken meanwhile, so is this.
func (t *tunnel) lead(host *net.TCPConn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.host = host
	if t.closed {
		_ = host.Close()
	}
}

// pass passes bytes both ways until both sides have ended. It says when the host
// has answered: the time between the first bytes of the client, or the beginning
// when the host speaks first, and those of the host.
func (t *tunnel) pass(in, out *atomic.Uint64, answered func(took time.Duration)) {
	began := time.Now()
	var asked atomic.Int64 // ns since then
	done := make(chan struct{})
	go func() {
		defer close(done)
		t.direction(t.host, t.client, in, func() { asked.Store(int64(time.Since(began))) })
	}()
	t.direction(t.client, t.host, out, func() { answered(time.Since(began) - time.Duration(asked.Load())) })
	<-done
}

const (
	// relayBuffer is for the short messages that most are: each direction of an
	// idle connection keeps one.
	relayBuffer = 4 << 10
	// spliceBytes is how many bytes the kernel passes on its own before they are
	// counted, once a message filled the buffer.
	spliceBytes = 1 << 20
)

// direction passes the bytes of one side to the other, and then its end. Before
// the first of them it calls first. When anything breaks, both connections do: a
// half-open one would never end.
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
			_ = to.CloseWrite() // fails only when the other direction has broken
			return
		case err != nil:
			t.close()
			return
		}
	}
}
