package wan

import (
	"bytes"
	"context"
	"errors"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
)

// deadline bounds each wait of a test.
const deadline = 30 * time.Second

// server is an origin that greets each client with its name and the client's IP address, and then sends back what it
// receives.
type server struct {
	net.Listener
	peer sut.Peer
}

func listen(t testing.TB, name string) server {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return server{l, sut.Peer{Node: name, Address: l.Addr().String()}}
}

// serve accepts clients until the listener is closed.
func (s server) serve() {
	for {
		c, err := s.Accept()
		if err != nil {
			return
		}
		go func() {
			defer c.Close()
			client, _, _ := net.SplitHostPort(c.RemoteAddr().String())
			_, _ = io.WriteString(c, s.peer.Node+" "+client+"\n")
			_, _ = io.Copy(c, c)
			_ = c.(*net.TCPConn).CloseWrite()
		}()
	}
}

// relay is a running relay on loopback.
type relay struct {
	*Relay
	address string
	served  chan error
}

// start starts a relay. Each change is made before it serves.
func start(t testing.TB, c Config, changes ...func(r *Relay)) relay {
	t.Helper()
	c.Log = slog.New(slog.DiscardHandler)
	if c.MaxConns == 0 {
		c.MaxConns = 100
	}
	made, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	for _, change := range changes {
		change(made)
	}
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := relay{made, l.Addr().String(), make(chan error, 1)}
	go func() { r.served <- made.Serve(l) }()
	return r
}

// stop waits for the open connections and checks that all have ended.
func (r relay) stop(t testing.TB) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), deadline)
	defer cancel()
	if err := errors.Join(r.Shutdown(ctx), <-r.served); err != nil {
		t.Error(err)
	}
	if f := r.Figures(); f.Active != 0 {
		t.Errorf("%+v after the end, want no active connection", f)
	}
}

// connect connects a client from a loopback address.
func connect(t testing.TB, from, to string) *net.TCPConn {
	t.Helper()
	dialer := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	c, err := dialer.Dial("tcp4", to)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	_ = c.SetDeadline(time.Now().Add(deadline))
	return c.(*net.TCPConn)
}

// greeting reads the first line that an origin sends.
func greeting(t testing.TB, c net.Conn) string {
	t.Helper()
	var line []byte
	for one := make([]byte, 1); ; {
		if _, err := io.ReadFull(c, one); err != nil {
			t.Fatalf("after %q: %v", line, err)
		}
		if one[0] == '\n' {
			return string(line)
		}
		line = append(line, one[0])
	}
}

// Bytes arrive complete and in order in both directions, for any sizes of writes and reads, and half-closes arrive.
func TestContent(t *testing.T) {
	t.Parallel()
	origin := listen(t, "origin-1")
	r := start(t, Config{RTT: 4 * time.Millisecond, Origins: []sut.Peer{origin.peer}})
	const size = 6 << 20
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	random := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8), byte(seed >> 16), byte(seed >> 24)})
	sent := [2][]byte{make([]byte, size), make([]byte, size)} // by the client, by the origin
	_, _ = random.Read(sent[0])
	_, _ = random.Read(sent[1])
	client := connect(t, "127.0.0.1", r.address)
	accepted, err := origin.Accept()
	if err != nil {
		t.Fatal(err)
	}
	var working sync.WaitGroup
	defer working.Wait()
	for i, c := range []net.Conn{client, accepted} {
		_ = c.SetDeadline(time.Now().Add(deadline))
		working.Go(func() {
			defer func() { _ = c.(*net.TCPConn).CloseWrite() }()
			sizes := rand.New(rand.NewPCG(seed, uint64(i)))
			for rest := sent[i]; len(rest) > 0; {
				n := min(1<<sizes.IntN(17)+sizes.IntN(100), len(rest))
				if _, err := c.Write(rest[:n]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
			}
		})
		working.Go(func() {
			got, err := io.ReadAll(c)
			if err != nil || !bytes.Equal(got, sent[1-i]) {
				t.Errorf("%d bytes arrived, %v; want the %d bytes that were sent", len(got), err, size)
			}
		})
	}
	working.Wait()
	r.stop(t)
	if f := r.Figures(); f.BytesIn != size || f.BytesOut != size {
		t.Errorf("%+v, want %d bytes each way", f, size)
	}
}

// Connections go to the origins in turn, from the address of their client. An origin that refuses is skipped.
func TestOriginsInTurn(t *testing.T) {
	t.Parallel()
	one, two, closed := listen(t, "origin-1"), listen(t, "origin-2"), listen(t, "origin-3")
	go one.serve()
	go two.serve()
	_ = closed.Close()
	r := start(t, Config{RTT: time.Millisecond, Origins: []sut.Peer{one.peer, closed.peer, two.peer}})
	counts := map[string]int{}
	for i := range 12 {
		from := []string{"127.0.0.1", "127.0.0.77"}[i%2]
		c := connect(t, from, r.address)
		name, address, _ := strings.Cut(greeting(t, c), " ")
		if address != from {
			t.Errorf("the origin sees the client %s, want %s", address, from)
		}
		counts[name]++
		_ = c.Close()
	}
	if counts["origin-1"] < 4 || counts["origin-2"] < 4 {
		t.Errorf("%v connections, want about the same number for both", counts)
	}
	r.stop(t)
	if f := r.Figures(); f.Accepted != 12 || f.Failed != 0 {
		t.Errorf("%+v, want 12 accepted and none failed", f)
	}
}

// The client is reset when all origins refuse.
func TestAllOriginsRefuse(t *testing.T) {
	t.Parallel()
	closed := listen(t, "origin-1")
	_ = closed.Close()
	r := start(t, Config{RTT: time.Millisecond, Origins: []sut.Peer{closed.peer}})
	c := connect(t, "127.0.0.1", r.address)
	if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v, want a reset", err)
	}
	r.stop(t)
	if f := r.Figures(); f.Accepted != 1 || f.Failed != 1 {
		t.Errorf("%+v, want 1 accepted and 1 failed", f)
	}
}

// Resets of real connections arrive as resets, in both directions.
func TestRealResets(t *testing.T) {
	t.Parallel()
	origin := listen(t, "origin-1")
	r := start(t, Config{RTT: time.Millisecond, Origins: []sut.Peer{origin.peer}})
	for range 2 {
		for _, byClient := range []bool{true, false} {
			client := connect(t, "127.0.0.1", r.address)
			accepted, err := origin.Accept()
			if err != nil {
				t.Fatal(err)
			}
			_ = accepted.SetDeadline(time.Now().Add(deadline))
			from, to := client, accepted.(*net.TCPConn)
			if !byClient {
				from, to = to, from
			}
			_ = from.SetLinger(0)
			_ = from.Close()
			if _, err := to.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("by client %t: read %v, want a reset", byClient, err)
			}
			_ = to.Close()
		}
	}
	r.stop(t)
}

// SetOrigins returns when no connection uses a removed origin. New connections do not use it from the start.
func TestSetOrigins(t *testing.T) {
	t.Parallel()
	one, two := listen(t, "origin-1"), listen(t, "origin-2")
	go one.serve()
	go two.serve()
	r := start(t, Config{RTT: time.Millisecond, Origins: []sut.Peer{one.peer}})
	old := connect(t, "127.0.0.1", r.address)
	if got := greeting(t, old); got != "origin-1 127.0.0.1" {
		t.Errorf("greeting %q", got)
	}
	for name, bad := range map[string][]sut.Peer{
		"none":     nil,
		"draining": {{Node: "x", Address: one.peer.Address, Draining: true}},
		"no port":  {{Address: "127.0.0.1"}},
	} {
		if err := r.SetOrigins(t.Context(), bad); !errors.Is(err, sut.ErrWiring) {
			t.Errorf("%s: error %v, want sut.ErrWiring", name, err)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.SetOrigins(ended, []sut.Peer{two.peer}); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the error of the context", err)
	}
	next := connect(t, "127.0.0.1", r.address)
	if got := greeting(t, next); got != "origin-2 127.0.0.1" {
		t.Errorf("greeting %q, want one of the new origin", got)
	}
	// The origin is listed again, so nothing is removed.
	if err := r.SetOrigins(t.Context(), []sut.Peer{two.peer, one.peer}); err != nil {
		t.Error(err)
	}
	draining := slices.Clone([]sut.Peer{two.peer, one.peer})
	draining[1].Draining = true
	changed := make(chan error, 1)
	go func() { changed <- r.SetOrigins(t.Context(), draining) }()
	polltest.Eventually(t, deadline, time.Millisecond, "the origin is removed", func() bool {
		r.origins.mu.Lock()
		defer r.origins.mu.Unlock()
		return len(r.origins.leaving) == 1
	})
	if _, err := io.WriteString(old, "still here\n"); err != nil || greeting(t, old) != "still here" {
		t.Errorf("the old connection ended: %v", err)
	}
	select {
	case err := <-changed:
		t.Errorf("SetOrigins returned %v while a connection used the removed origin", err)
	default:
	}
	_ = old.Close()
	if err := <-changed; err != nil {
		t.Error(err)
	}
	_ = next.Close()
	r.stop(t)
}

// A connection above the maximum number is closed, and those within it are served.
func TestMaxConns(t *testing.T) {
	t.Parallel()
	origin := listen(t, "origin-1")
	go origin.serve()
	r := start(t, Config{RTT: time.Millisecond, Origins: []sut.Peer{origin.peer}, MaxConns: 2})
	first, second := connect(t, "127.0.0.1", r.address), connect(t, "127.0.0.1", r.address)
	greeting(t, first)
	greeting(t, second)
	third := connect(t, "127.0.0.1", r.address)
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("the third connection got data")
	}
	if f := r.Figures(); f.Accepted != 3 || f.Active != 2 || f.Failed != 1 {
		t.Errorf("%+v, want 3 accepted, 2 active and 1 failed", f)
	}
	_ = first.Close()
	polltest.Eventually(t, deadline, time.Millisecond, "the first connection ends",
		func() bool { return r.Figures().Active == 1 })
	greeting(t, connect(t, "127.0.0.1", r.address))
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := r.Shutdown(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("shutdown: %v, want the error of the context", err)
	}
	if err := <-r.served; err != nil {
		t.Error(err)
	}
}

// TestShutdownLeavesNothing is not parallel: goleak would report the goroutines of other tests.
func TestShutdownLeavesNothing(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	silent := listen(t, "origin-1") // never accepts; its kernel does
	r := start(t, Config{RTT: time.Hour, Origins: []sut.Peer{silent.peer}})
	inHandshake := connect(t, "127.0.0.1", r.address)
	_, _ = inHandshake.Write([]byte("never arrives"))
	fast := start(t, Config{RTT: time.Millisecond, Origins: []sut.Peer{silent.peer}})
	open := connect(t, "127.0.0.1", fast.address)
	full := make(chan error, 1)
	go func() { // more than fits into the relay and the kernel
		_, err := open.Write(make([]byte, 64<<20))
		full <- err
	}()
	polltest.Eventually(t, deadline, time.Millisecond, "the relays have the connections", func() bool {
		return r.Figures().Active == 1 && fast.Figures().BytesIn > MaxTransitBytes
	})
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	for _, r := range []relay{r, fast} {
		if err := r.Shutdown(ctx); !errors.Is(err, context.Canceled) {
			t.Errorf("shutdown: %v, want the error of the context", err)
		}
		if err := r.Shutdown(t.Context()); err != nil {
			t.Errorf("second shutdown: %v", err)
		}
		if err := <-r.served; err != nil {
			t.Error(err)
		}
		if err := r.Serve(listen(t, "unused").Listener); err != nil {
			t.Errorf("serve after shutdown: %v", err)
		}
	}
	if err := <-full; err == nil {
		t.Error("the client could send everything to an origin that reads nothing")
	}
}

// The relay connects from the client's address only between IPv4 loopback addresses.
func TestSourceAddress(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ client, origin, want string }{
		{"127.0.0.7:999", "127.0.0.1:80", "127.0.0.7:0"},
		{"[::ffff:127.0.0.7]:999", "127.0.0.1:80", "127.0.0.7:0"},
		{"127.0.0.7:999", "10.0.0.1:80", ""},
		{"10.0.0.7:999", "127.0.0.1:80", ""},
		{"[::1]:999", "127.0.0.1:80", ""},
		{"127.0.0.7:999", "[::1]:80", ""},
	} {
		client, err := net.ResolveTCPAddr("tcp", test.client)
		if err != nil {
			t.Fatal(err)
		}
		got, ok := sourceAddress(client, test.origin)
		if ok != (test.want != "") || ok && got.String() != test.want {
			t.Errorf("%s to %s: from %v, %t; want %q", test.client, test.origin, got, ok, test.want)
		}
	}
}

// A connection that cannot be made from the client's address is made without it.
func TestBindFailure(t *testing.T) {
	t.Parallel()
	origin := listen(t, "origin-1")
	go origin.serve()
	for _, client := range []string{"127.0.0.9:1", "10.255.255.254:1"} {
		address, err := net.ResolveTCPAddr("tcp", client)
		if err != nil {
			t.Fatal(err)
		}
		c, err := dialOrigin(t.Context(), address, origin.peer.Address)
		if err != nil {
			t.Fatalf("%s: %v", client, err)
		}
		_ = c.SetReadDeadline(time.Now().Add(deadline))
		greeting(t, c)
		_ = c.Close()
	}
	var d net.Dialer
	d.LocalAddr = &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1)} // reserved for documentation: no machine has it
	if _, err := d.Dial("tcp4", origin.peer.Address); !isBindFailure(err) {
		t.Errorf("%v is not seen as a failure to bind", err)
	}
	_ = origin.Close()
	if _, err := net.Dial("tcp4", origin.peer.Address); err == nil || isBindFailure(err) {
		t.Errorf("%v is seen as a failure to bind", err)
	}
}

func TestBadConfigs(t *testing.T) {
	t.Parallel()
	good := Config{
		Origins: []sut.Peer{{Node: "origin-1", Address: "127.0.0.1:1"}}, MaxConns: 1, Log: slog.New(slog.DiscardHandler),
	}
	if _, err := New(good); err != nil {
		t.Error(err)
	}
	for want, change := range map[string]func(c *Config){
		"round-trip time -1ns":  func(c *Config) { c.RTT = -1 },
		"at most 0 connections": func(c *Config) { c.MaxConns = 0 },
		"no origins":            func(c *Config) { c.Origins = nil },
		`address "localhost:1"`: func(c *Config) { c.Origins = []sut.Peer{{Address: "localhost:1"}} },
		"no logger":             func(c *Config) { c.Log = nil },
	} {
		c := good
		change(&c)
		if _, err := New(c); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("error %v, want one with %q", err, want)
		}
	}
}
