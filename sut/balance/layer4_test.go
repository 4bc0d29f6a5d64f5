package balance

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/sut"
)

// serveLayer4 serves a layer 4 balancer and returns its address and the result of Serve.
func serveLayer4(t *testing.T, b *Balancer) (address string, served chan error) {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served = make(chan error, 1)
	go func() { served <- b.Serve(listener) }()
	return listener.Addr().String(), served
}

// echoHost starts a host that sends back what it receives, and returns its address.
func echoHost(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				_, _ = io.Copy(conn, conn)
			}()
		}
	}()
	return listener.Addr().String()
}

// dialAndEcho connects and checks one echo.
func dialAndEcho(t *testing.T, address string) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	checkEcho(t, conn)
	return conn
}

// checkEcho sends a word and checks that it comes back.
func checkEcho(t *testing.T, conn net.Conn) {
	t.Helper()
	word := []byte("hello")
	_, _ = conn.Write(word)
	if _, err := io.ReadFull(conn, word); err != nil || string(word) != "hello" {
		t.Fatalf("%q, %v", word, err)
	}
}

// TestLayer4Drains: Shutdown waits for an open connection until its context ends.
func TestLayer4Drains(t *testing.T) {
	t.Parallel()
	for _, patient := range []bool{true, false} {
		cfg := Config{Balancing: sut.Balancing{Layer: sut.Layer4, HealthInterval: time.Minute}}
		b := newBalancer(t, cfg, echoHost(t))
		b.probe = func(context.Context, string) error { return nil }
		address, served := serveLayer4(t, b)
		conn := dialAndEcho(t, address)
		ctx, cancel := context.WithCancel(t.Context())
		down := make(chan error, 1)
		go func() { down <- b.Shutdown(ctx) }()
		if err := <-served; err != nil {
			t.Error(err)
		}
		if other, err := net.Dial("tcp", address); err == nil {
			_ = other.Close()
			t.Error("the balancer accepts connections while it drains")
		}
		checkEcho(t, conn)
		if patient {
			_ = conn.Close()
			if err := <-down; err != nil {
				t.Error(err)
			}
		} else {
			cancel()
			if err := <-down; !errors.Is(err, context.Canceled) {
				t.Errorf("error %v, want the error of the context", err)
			}
			if _, err := conn.Read(make([]byte, 1)); err == nil {
				t.Error("the connection is still open")
			}
		}
		cancel()
		if status, _ := b.Status(t.Context()); status.Connections.Active != 0 || status.Upstreams[0].InFlight != 0 {
			t.Errorf("after the end: %+v, %+v", status.Connections, status.Upstreams)
		}
	}
}

// TestLayer4IsBounded: a connection above the maximum number is closed, and those within it are served.
func TestLayer4IsBounded(t *testing.T) {
	t.Parallel()
	cfg := Config{Balancing: sut.Balancing{Layer: sut.Layer4, HealthInterval: time.Minute}, MaxTunnels: 2}
	b := newBalancer(t, cfg, echoHost(t))
	b.probe = func(context.Context, string) error { return nil }
	address, served := serveLayer4(t, b)
	first, second := dialAndEcho(t, address), dialAndEcho(t, address)
	third, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer third.Close()
	if _, err := third.Read(make([]byte, 1)); err == nil {
		t.Error("the third connection got data")
	}
	checkEcho(t, first)
	checkEcho(t, second)
	if status, _ := b.Status(t.Context()); status.Connections.Failed != 1 || status.Connections.Active != 2 {
		t.Errorf("%+v, want 2 active and 1 failed", status.Connections)
	}
	_, _ = first.Close(), second.Close()
	if err := errors.Join(b.Shutdown(t.Context()), <-served); err != nil {
		t.Error(err)
	}
}

// TestLayer4LeaksNoGoroutine is not parallel: goleak would report the goroutines of
// other tests.
func TestLayer4LeaksNoGoroutine(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	host := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer host.Close()
	cfg := Config{Balancing: sut.Balancing{Layer: sut.Layer4, HealthInterval: 10 * time.Millisecond}}
	b := newBalancer(t, cfg, host.Listener.Addr().String(), "127.0.0.1:1")
	address, served := serveLayer4(t, b)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	for range 20 {
		res, err := client.Get("http://" + address)
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
	}
	if err := errors.Join(b.Shutdown(t.Context()), <-served); err != nil {
		t.Error(err)
	}
}

// TestLayer4FailuresAreCounted uses addresses without a listener.
func TestLayer4FailuresAreCounted(t *testing.T) {
	t.Parallel()
	cfg := Config{Balancing: sut.Balancing{Layer: sut.Layer4, HealthInterval: time.Minute}}
	b := newBalancer(t, cfg, "127.0.0.1:1", "127.0.0.1:2")
	b.probe = func(context.Context, string) error { return nil }
	address, served := serveLayer4(t, b)
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if n, err := conn.Read(make([]byte, 1)); err == nil {
		t.Errorf("received %d bytes, and no host is reachable", n)
	}
	if err := errors.Join(b.Shutdown(t.Context()), <-served); err != nil {
		t.Error(err)
	}
	status, _ := b.Status(t.Context())
	if c := status.Connections; c.Accepted != 1 || c.Failed != 1 || c.Active != 0 {
		t.Errorf("%+v", c)
	}
}

// TestLeastResponseTimeEndToEnd: at layer 7, a host that fails quickly gets few requests.
// At layer 4, the latency of both hosts is measured.
func TestLeastResponseTimeEndToEnd(t *testing.T) {
	t.Parallel()
	fails := hostOf(t, func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusInternalServerError) })
	works := hostOf(t, func(http.ResponseWriter, *http.Request) {})
	// A busy machine can make the working host look slow for a while, so try again.
	for attempt := 1; ; attempt++ {
		b := newBalancer(t, Config{Balancing: sut.Balancing{Policy: sut.PolicyLeastResponseTime}}, fails, works)
		address := serve(t, b)
		for range 200 {
			raw(t, address, "GET / HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		}
		n := b.pool.statusOf(t, "web-1").Requests
		if n > 0 && n <= 40 {
			break
		}
		if attempt == 5 {
			t.Fatalf("a host that fails quickly got %d of 200 requests in the last of five attempts", n)
		}
	}

	cfg := Config{Balancing: sut.Balancing{
		Layer: sut.Layer4, Policy: sut.PolicyLeastResponseTime, HealthInterval: time.Minute,
	}}
	b4 := newBalancer(t, cfg, echoHost(t), echoHost(t))
	b4.probe = func(context.Context, string) error { return nil }
	address, served := serveLayer4(t, b4)
	for range 20 {
		_ = dialAndEcho(t, address).Close()
	}
	if err := errors.Join(b4.Shutdown(t.Context()), <-served); err != nil {
		t.Error(err)
	}
	for _, u := range b4.pool.members {
		if u.requests == 0 || u.latency.ns == 0 {
			t.Errorf("%s: %d connections, latency %v", u.node, u.requests, u.latency)
		}
	}
}
