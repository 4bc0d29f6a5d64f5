// Package wan stands for a wide-area network between clients and their origin. It is a TCP relay that adds an exact
// round-trip time in user space, because a system may not permit the kernel's netem.
//
// It keeps these times, where RTT is the round-trip time:
//   - A byte arrives RTT/2 after it was sent, in each direction. Order is kept. A byte does not wait for later ones.
//   - A new connection costs one RTT more: in the three-way handshake (RFC 9293, section 3.5, figure 6), a client sends
//     its first bytes one RTT after its SYN, and a server that speaks first sends them 1.5 RTT after that SYN. The
//     kernel completes the handshake with the relay at once. So bytes that one side sends before its handshake would be
//     over count as sent at its end: the first bytes of a client arrive 1.5 RTT after it connected. Later bytes of the
//     same connection do not pay again. A client whose connection fails learns it after one RTT.
//   - The end of a direction (FIN) and a reset (RST) travel like bytes.
//
// It does not model loss, jitter, slow start or the bandwidth of a line. It does not interpret the bytes: TLS
// handshakes and HTTP keep-alive pay what they would pay over such a network. Times are never too short. They are too
// long by the time that the relay and its kernel need for a chunk, by the lateness of the kernel's timers (about 50 us;
// on systems other than Linux up to 1 ms), and by the time that the relay waits for a CPU.
//
// Memory is bounded: by Config.MaxConns and, for each connection and direction, by MaxTransitBytes.
//
// The usual order of calls is New, Serve, Shutdown. All methods may be called concurrently.
package wan

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Config is the configuration of a relay.
type Config struct {
	// RTT is the round-trip time that the relay adds; 0 = none.
	RTT time.Duration
	// Origins are the servers behind the network. Each connection goes to the next one in turn, and to the one after it
	// when that refuses the connection. At least one must not be draining.
	Origins []sut.Peer
	// MaxConns is the maximum number of connections of clients. A further one is closed.
	MaxConns int
	// Log gets the origins that cannot be reached.
	Log *slog.Logger
}

// validate returns the first error in a Config.
func (c Config) validate() error {
	switch {
	case c.RTT < 0:
		return fmt.Errorf("round-trip time %v: want 0 or more", c.RTT)
	case c.MaxConns < 1:
		return fmt.Errorf("at most %d connections: want 1 or more", c.MaxConns)
	case c.Log == nil:
		return errors.New("no logger")
	}
	return nil
}

// conn is a connection of a client or to an origin. A *net.TCPConn is one.
type conn interface {
	net.Conn
	CloseWrite() error
	SetLinger(seconds int) error
}

// Relay is a wide-area network between clients and the origins.
type Relay struct {
	rtt      time.Duration
	maxConns int
	log      *slog.Logger
	origins  *origins
	segments segments
	dial     func(ctx context.Context, client net.Addr, address string) (conn, error)
	alarms   func() (alarms, error) // called once, by Serve

	accepted, failed atomic.Uint64 // connections
	in, out          atomic.Uint64 // bytes that clients sent, and origins
	carrying         sync.WaitGroup

	mu       sync.Mutex
	listener net.Listener
	clock    alarms // wakes up the tunnels; nil before Serve
	tunnels  map[*tunnel]struct{}
	stopped  bool
}

// New returns a relay that does not listen yet.
func New(c Config) (*Relay, error) {
	if err := c.validate(); err != nil {
		return nil, fmt.Errorf("wan: %w", err)
	}
	r := &Relay{
		rtt: c.RTT, maxConns: c.MaxConns, log: c.Log, origins: newOrigins(), dial: dialOrigin,
		alarms: openAlarms, tunnels: map[*tunnel]struct{}{},
	}
	if err := r.origins.set(c.Origins); err != nil {
		return nil, fmt.Errorf("wan: %w", err)
	}
	return r, nil
}

// acceptPause is the pause before the next accept after a temporary error.
const acceptPause = 20 * time.Millisecond

// Serve accepts clients. It returns nil after Shutdown. It must be called once.
func (r *Relay) Serve(listener net.Listener) error {
	if !r.open(listener) {
		return listener.Close()
	}
	for {
		accepted, err := listener.Accept()
		switch {
		case err == nil:
			client, ok := accepted.(conn)
			if !ok {
				return errors.Join(fmt.Errorf("wan: a %T has no half-close", accepted), accepted.Close())
			}
			r.begin(client)
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED):
			// These errors are temporary. Clients wait in the kernel's accept queue.
			r.log.Warn("connection not accepted, trying again", "cause", err, "pause", acceptPause)
			time.Sleep(acceptPause)
		default:
			return fmt.Errorf("wan: accept: %w", err)
		}
	}
}

// open prepares the relay for clients. It returns false after Shutdown.
func (r *Relay) open(listener net.Listener) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.listener = listener
	if r.stopped {
		return false
	}
	clock, err := r.alarms()
	if err != nil {
		r.log.Warn("times are up to 1 ms too long, because the system refuses exact timers", "cause", err)
		clock = timers{}
	}
	r.clock = clock
	return true
}

// begin starts a tunnel for a new client.
func (r *Relay) begin(client conn) {
	r.accepted.Add(1)
	r.mu.Lock()
	defer r.mu.Unlock()
	t := newTunnel(r, r.clock, client)
	full := len(r.tunnels) >= r.maxConns
	if full {
		r.failed.Add(1)
	}
	if r.stopped || full {
		t.close(false)
		return
	}
	r.tunnels[t] = struct{}{}
	r.carrying.Go(func() {
		t.carry()
		r.mu.Lock()
		delete(r.tunnels, t)
		r.mu.Unlock()
	})
}

// SetOrigins replaces the origins. New connections go to the new ones at once. It returns when no connection uses a
// removed or draining origin any more, or with the error of ctx; these connections then go on. An error that wraps
// sut.ErrWiring means that nothing changed.
func (r *Relay) SetOrigins(ctx context.Context, peers []sut.Peer) error {
	if err := r.origins.set(peers); err != nil {
		return fmt.Errorf("%w: wan: %w", sut.ErrWiring, err)
	}
	if err := r.origins.waitForRemoved(ctx); err != nil {
		return fmt.Errorf("wan: connections still use a removed origin: %w", err)
	}
	return nil
}

// Figures returns the counters of connections and bytes since the start. BytesIn is what clients sent, and BytesOut
// what origins sent. Bytes are counted when they are sent, which is before they arrive. Failed includes connections
// above Config.MaxConns.
func (r *Relay) Figures() sut.ConnectionStatus {
	r.mu.Lock()
	defer r.mu.Unlock()
	return sut.ConnectionStatus{
		Accepted: r.accepted.Load(), Active: len(r.tunnels), Failed: r.failed.Load(),
		BytesIn: r.in.Load(), BytesOut: r.out.Load(),
	}
}

// Shutdown stops accepting clients and waits for the open connections. When ctx ends first, it closes the remaining
// ones and returns the error of ctx.
func (r *Relay) Shutdown(ctx context.Context) error {
	r.mu.Lock()
	r.stopped = true
	var err error
	if r.listener != nil {
		if err = r.listener.Close(); errors.Is(err, net.ErrClosed) {
			err = nil // an earlier call closed it
		}
	}
	clock := r.clock
	r.mu.Unlock()
	done := make(chan struct{})
	go func() {
		defer close(done)
		r.carrying.Wait()
		if clock != nil {
			clock.close()
		}
	}()
	select {
	case <-done:
		return err
	case <-ctx.Done():
	}
	r.mu.Lock()
	for t := range r.tunnels {
		t.close(false)
	}
	r.mu.Unlock()
	<-done
	return errors.Join(err, ctx.Err())
}
