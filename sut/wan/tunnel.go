package wan

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// tunnel is a client's connection together with its connection to an origin. Each direction has a lane with two
// goroutines: one reads from the sender, the other writes to the receiver when the bytes are due.
type tunnel struct {
	relay    *Relay
	clock    alarms
	began    time.Time // when the client connected; the times of the lanes count from here
	client   conn
	toOrigin *lane
	toClient *lane
	ended    context.Context // ends when both connections are closed
	end      context.CancelFunc

	mu     sync.Mutex
	origin conn // nil until it is connected
	closed bool
}

func newTunnel(r *Relay, clock alarms, client conn) *tunnel {
	t := &tunnel{relay: r, clock: clock, began: time.Now(), client: client}
	t.ended, t.end = context.WithCancel(context.Background())
	// The client is in the state ESTABLISHED when the SYN-ACK has arrived, and the origin when the ACK after it has.
	t.toOrigin = newLane(&r.segments, t.ended.Done(), r.rtt/2, r.rtt)
	t.toClient = newLane(&r.segments, t.ended.Done(), r.rtt/2, r.rtt+r.rtt/2)
	return t
}

// now returns the time since the client connected.
func (t *tunnel) now() time.Duration { return time.Since(t.began) }

// wait waits for a time. It returns false if the tunnel ended before.
func (t *tunnel) wait(d time.Duration) bool {
	alarm := t.clock.alarm()
	defer alarm.stop()
	select {
	case <-alarm.in(d):
		return true
	case <-t.ended.Done():
		return false
	}
}

// carry connects the client with an origin, forwards bytes, and returns when both connections are closed.
func (t *tunnel) carry() {
	var working sync.WaitGroup
	defer working.Wait()
	defer t.close(false)
	working.Go(func() { t.read(t.client, t.toOrigin, &t.relay.in) })
	if !t.wait(t.relay.rtt / 2) { // the SYN is on its way
		return
	}
	used := t.connect()
	if used == nil {
		if t.ended.Err() == nil {
			t.relay.failed.Add(1)
			t.failed()
		}
		return
	}
	defer t.relay.origins.release(used)
	// The origin counts as in use until both connections are closed.
	defer working.Wait()
	defer t.close(false)
	working.Go(func() { t.read(t.origin, t.toClient, &t.relay.out) })
	var writing sync.WaitGroup
	writing.Go(func() { t.write(t.client, t.toClient) })
	t.write(t.origin, t.toOrigin)
	writing.Wait()
}

// connect connects to an origin, and to another one when the first is unreachable. It returns nil when no origin is
// reachable or the tunnel ends.
func (t *tunnel) connect() *origin {
	r := t.relay
	var tried []*origin
	for t.ended.Err() == nil {
		next := r.origins.acquire(tried)
		if next == nil {
			return nil
		}
		ctx, cancel := context.WithTimeout(t.ended, sut.ConnectTimeout)
		connected, err := r.dial(ctx, t.client.RemoteAddr(), next.address)
		cancel()
		news := r.origins.reached(next, err)
		if err == nil {
			if news {
				r.log.Info("origin is reachable again", "origin", next.node, "address", next.address)
			}
			t.setOrigin(connected)
			return next
		}
		if news {
			r.log.Warn("origin is unreachable", "origin", next.node, "address", next.address, "cause", err)
		}
		r.origins.release(next)
		tried = append(tried, next)
	}
	return nil
}

// read reads what one side sends into its lane, until the side ends.
func (t *tunnel) read(from conn, l *lane, bytes *atomic.Uint64) {
	buffer := make([]byte, readBytes)
	for {
		room := l.room()
		if room == 0 {
			return // the tunnel ended
		}
		n, err := from.Read(buffer[:min(room, len(buffer))])
		bytes.Add(uint64(n))
		l.add(buffer[:n], t.now())
		if err == nil {
			continue
		}
		if errors.Is(err, io.EOF) {
			l.finish(halfClosed, t.now())
			return
		}
		l.finish(reset, t.now())
		// The writer of the lane resets the other side, after the bytes before. It cannot if that side does not read.
		if t.wait(t.relay.rtt/2 + resetGrace) {
			t.close(true)
		}
		return
	}
}

// write writes what is due in a lane to its receiver, until the lane ends.
func (t *tunnel) write(to conn, l *lane) {
	alarm := t.clock.alarm()
	defer alarm.stop()
	for {
		part, pause, how := l.due(t.now())
		switch {
		case len(part) > 0:
			if _, err := to.Write(part); err != nil {
				t.failed()
				return
			}
			l.taken(len(part))
		case how == halfClosed:
			_ = to.CloseWrite() // fails only when the other direction fails, too
			return
		case how == reset:
			t.close(true)
			return
		default:
			if !l.wait(alarm, pause) {
				return
			}
		}
	}
}

// failed resets the tunnel after the time in which the news of a failure at one side arrives at the other. Bytes that
// were sent before arrive before.
func (t *tunnel) failed() {
	if t.wait(t.relay.rtt / 2) {
		t.close(true)
	}
}

// close closes both connections, with a reset if wanted. Further calls do nothing.
func (t *tunnel) close(withReset bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return
	}
	t.closed = true
	t.end()
	for _, c := range []conn{t.client, t.origin} {
		if c == nil {
			continue
		}
		if withReset {
			_ = c.SetLinger(0) // fails when the connection is broken already
		}
		_ = c.Close() // nothing can be done about an error
	}
}

// setOrigin sets the connection to the origin. It closes the connection if the tunnel is closed already.
func (t *tunnel) setOrigin(connected conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.origin = connected
	if t.closed {
		_ = connected.Close()
	}
}

// resetGrace is the time after which a reset overtakes bytes that its receiver does not read.
const resetGrace = time.Second

// dialOrigin connects to an origin. If client and origin have IPv4 loopback addresses, it connects from the client's IP
// address, so that a balancer at the origin that hashes the addresses of clients sees them. It connects without that
// address if the system refuses it, for example because all ports of the address are taken.
func dialOrigin(ctx context.Context, client net.Addr, address string) (conn, error) {
	dialer := net.Dialer{Control: bindWithoutPort}
	from, bind := sourceAddress(client, address)
	if bind {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(from)
	}
	connected, err := dialer.DialContext(ctx, "tcp", address)
	if bind && isBindFailure(err) {
		dialer.LocalAddr = nil
		connected, err = dialer.DialContext(ctx, "tcp", address)
	}
	if err != nil {
		return nil, err
	}
	return connected.(*net.TCPConn), nil
}

// sourceAddress returns the address from which a connection for a client is made, with port 0 = any. ok is false if the
// system should choose the address.
func sourceAddress(client net.Addr, origin string) (from netip.AddrPort, ok bool) {
	tcp, isTCP := client.(*net.TCPAddr)
	to, err := netip.ParseAddrPort(origin)
	if !isTCP || err != nil {
		return from, false
	}
	ip := tcp.AddrPort().Addr().Unmap() // a listener for IPv4 and IPv6 reports IPv4 addresses in IPv6 form
	ok = ip.Is4() && ip.IsLoopback() && to.Addr().Is4() && to.Addr().IsLoopback()
	return netip.AddrPortFrom(ip, 0), ok
}

// isBindFailure reports whether a connection failed because of its own address.
func isBindFailure(err error) bool {
	call, ok := errors.AsType[*os.SyscallError](err)
	return ok && (call.Syscall == "bind" || call.Err == syscall.EADDRNOTAVAIL)
}
