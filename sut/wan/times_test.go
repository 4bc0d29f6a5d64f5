package wan

import (
	"errors"
	"io"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

const ms = time.Millisecond

// An exchange over a new connection takes two round trips, and the next one takes one. The bytes of a connection arrive
// half a round trip after they were sent, and none waits for later ones.
func TestTimes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, 80*ms)
		client := n.dial()
		n.sends(client, "first")
		n.sends(client, " request")
		origin := <-n.origins
		n.at("the SYN", 40*ms)
		n.reads(origin, "first request", 120*ms)
		n.sends(origin, "first response")
		n.reads(client, "first response", 160*ms)

		n.sends(client, "second request")
		n.reads(origin, "second request", 200*ms)
		go func() {
			n.sends(origin, "a")
			time.Sleep(1 * ms)
			n.sends(origin, "b")
			time.Sleep(6 * ms)
			n.sends(origin, "c")
		}()
		n.reads(client, "a", 240*ms)
		n.reads(client, "b", 241*ms)
		n.reads(client, "c", 247*ms)

		_ = client.CloseWrite()
		n.ends(origin, io.EOF, 287*ms)
		n.sends(origin, "after the half-close")
		_ = origin.CloseWrite()
		n.reads(client, "after the half-close", 327*ms)
		n.ends(client, io.EOF, 327*ms)
		n.stop()
		f := n.relay.Figures()
		if f.Accepted != 1 || f.Failed != 0 || f.BytesIn != 27 || f.BytesOut != 37 {
			t.Errorf("%+v, want 1 accepted connection with 27 and 37 bytes", f)
		}
	})
}

// The handshake costs a client nothing that it has waited for anyway.
func TestTimesOfLateClient(t *testing.T) {
	t.Parallel()
	for sent, arrives := range map[time.Duration]time.Duration{
		0: 120 * ms, 50 * ms: 120 * ms, 80 * ms: 120 * ms, 81 * ms: 121 * ms, 500 * ms: 540 * ms,
	} {
		synctest.Test(t, func(t *testing.T) {
			n := newNetwork(t, 80*ms)
			client := n.dial()
			time.Sleep(sent)
			n.sends(client, "x")
			origin := <-n.origins
			n.reads(origin, "x", arrives)
			_, _ = client.CloseWrite(), origin.CloseWrite()
			n.stop()
		})
	}
}

// An origin that sends first does so when it has the last segment of the handshake.
func TestTimesOfOriginThatSendsFirst(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, 80*ms)
		client := n.dial()
		origin := <-n.origins
		n.sends(origin, "hello")
		n.reads(client, "hello", 160*ms)
		_, _ = client.CloseWrite(), origin.CloseWrite()
		n.stop()
	})
}

// With a round-trip time of 0 nothing waits.
func TestNoDelay(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, 0)
		client := n.dial()
		n.sends(client, "request")
		origin := <-n.origins
		n.reads(origin, "request", 0)
		n.sends(origin, "response")
		n.reads(client, "response", 0)
		_, _ = client.CloseWrite(), origin.CloseWrite()
		n.stop()
	})
}

// A reset arrives after the bytes before it, on both sides.
func TestReset(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, 80*ms)
		client := n.dial()
		n.sends(client, "x")
		origin := <-n.origins
		n.reads(origin, "x", 120*ms)
		n.sends(origin, "last words")
		_ = origin.SetLinger(0)
		_ = origin.Close()
		n.reads(client, "last words", 160*ms)
		n.ends(client, syscall.ECONNRESET, 160*ms)
		n.stop()

		n = newNetwork(t, 80*ms)
		client = n.dial()
		n.sends(client, "x")
		_ = client.SetLinger(0)
		_ = client.Close()
		origin = <-n.origins
		n.reads(origin, "x", 120*ms)
		n.ends(origin, syscall.ECONNRESET, 120*ms)
		n.stop()
	})
}

// A reset reaches a side that does not read the bytes before it.
func TestResetOvertakesBytesThatNobodyReads(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, 80*ms)
		client := n.dial()
		n.sends(client, "x")
		_ = client.SetLinger(0)
		_ = client.Close()
		origin := <-n.origins
		n.stop() // waits for the tunnel
		n.ends(origin, syscall.ECONNRESET, 40*ms+resetGrace)
	})
}

// A side that has closed its connection and gets more bytes resets it. The sender of these bytes gets the reset after
// one round trip.
func TestResetByLateBytes(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, 80*ms)
		client := n.dial()
		n.sends(client, "x")
		origin := <-n.origins
		n.reads(origin, "x", 120*ms)
		_ = origin.Close() // sends FIN
		n.ends(client, io.EOF, 160*ms)
		n.sends(client, "y")
		n.stop() // waits for the tunnel
		if _, err := client.Write([]byte("z")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write: %v, want a reset", err)
		}
		n.at("the reset", 240*ms)
	})
}

// A client whose connection no origin accepts learns it after one round trip.
func TestTimeOfRefusal(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, 80*ms)
		n.refuse = syscall.ECONNREFUSED
		client := n.dial()
		n.ends(client, syscall.ECONNRESET, 80*ms)
		n.stop()
		if f := n.relay.Figures(); f.Failed != 1 {
			t.Errorf("%+v, want 1 failed connection", f)
		}
	})
}

// The bytes in transit are bounded: a sender waits when the receiver does not read, and the throughput is
// MaxTransitBytes per half a round trip.
func TestTransitIsBounded(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const kib = 1 << 10
		const total = 4*MaxTransitBytes - kib // with the last KiB, the FIN would wait for room, too
		n := newNetwork(t, 80*ms)
		client := n.dial()
		sent := 0
		go func() {
			for ; sent < total; sent += kib {
				n.sends(client, string(make([]byte, kib)))
			}
			_ = client.CloseWrite()
		}()
		origin := <-n.origins
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if sent != MaxTransitBytes {
			t.Errorf("%d bytes are in transit, want %d", sent, MaxTransitBytes)
		}
		began := time.Since(n.began)
		got, err := io.Copy(io.Discard, origin)
		if err != nil || got != total {
			t.Errorf("%d bytes arrived, %v; want %d", got, err, total)
		}
		n.at("the last byte", began+3*40*ms)
		_ = origin.CloseWrite()
		n.stop()
	})
}

// The packets in transit are bounded, too. Each keeps its own time.
func TestSmallPackets(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		n := newNetwork(t, 80*ms)
		client := n.dial()
		origin := <-n.origins
		time.Sleep(60 * ms) // the handshake is over
		sent := 0
		go func() {
			for ; sent < 2*maxTransitReads; sent++ {
				n.sends(client, "x")
				time.Sleep(time.Microsecond)
			}
		}()
		n.reads(origin, "x", 140*ms)
		n.reads(origin, "x", 140*ms+time.Microsecond)
		time.Sleep(time.Second)
		synctest.Wait()
		if sent != maxTransitReads+2 { // two have arrived
			t.Errorf("%d packets were sent, want %d", sent, maxTransitReads+2)
		}
		_, _ = io.Copy(io.Discard, io.LimitReader(origin, 2*maxTransitReads-2))
		_, _ = client.CloseWrite(), origin.CloseWrite()
		n.stop()
	})
}
