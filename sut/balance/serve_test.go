package balance

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
)

// serve serves a balancer on a free port and returns the address.
func serve(t *testing.T, b *Balancer) string {
	t.Helper()
	server := httptest.NewServer(http.HandlerFunc(b.serve))
	t.Cleanup(func() {
		server.Close()
		b.pool.close()
	})
	return server.Listener.Addr().String()
}

// raw sends the bytes of a request to a balancer and returns the response and its body.
func raw(t *testing.T, address, request string) (*http.Response, string) {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		t.Fatal(err)
	}
	_, _ = io.WriteString(conn, request)
	res, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatalf("%q: %v", request, err)
	}
	return res, string(body)
}

// hostOf runs a handler as a host and returns its address.
func hostOf(t *testing.T, handler http.HandlerFunc) string {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return server.Listener.Addr().String()
}

// waitFinished waits until a balancer has counted a request with the status. It then
// checks that no other status was counted and that no request is in flight.
func waitFinished(t *testing.T, b *Balancer, code string) {
	t.Helper()
	var status sut.BalancerStatus
	polltest.Eventually(t, time.Minute, time.Millisecond, "a "+code+" is counted", func() bool {
		status, _ = b.Status(t.Context())
		return status.Responses[code] > 0
	})
	if n := len(status.Responses); n != 1 {
		t.Errorf("responses %v, want only %s", status.Responses, code)
	}
	for _, u := range status.Upstreams {
		if u.InFlight != 0 {
			t.Errorf("%d in flight at %s", u.InFlight, u.Node)
		}
	}
}

// nonsenseHost and switchingHost send answers that no client asked for.
func nonsenseHost(w http.ResponseWriter, _ *http.Request) {
	hijackAndSend(w, "SSH-2.0-OpenSSH_9.2\r\n\r\n")
}

func switchingHost(w http.ResponseWriter, _ *http.Request) {
	hijackAndSend(w, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
}

func hijackAndSend(w http.ResponseWriter, bytes string) {
	conn, _, err := w.(http.Hijacker).Hijack()
	if err != nil {
		panic(err)
	}
	_, _ = io.WriteString(conn, bytes)
	_ = conn.Close()
}

// TestOwnErrors checks the errors that the balancer itself sends.
func TestOwnErrors(t *testing.T) {
	t.Parallel()
	hang := func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() }
	read := func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }
	const get, post = "GET / HTTP/1.1\r\nHost: h\r\n", "POST / HTTP/1.1\r\nHost: h\r\n"
	for _, test := range []struct {
		name, request string
		host          http.HandlerFunc
		timeout       time.Duration
		status        int
	}{
		{"no answer in time", get + "\r\n", hang, 200 * time.Millisecond, 504},
		{"no HTTP", get + "\r\n", nonsenseHost, time.Minute, 502},
		{"protocol switched without a request", get + "\r\n", switchingHost, time.Minute, 502},
		{
			"malformed body", post + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\nzz\r\n",
			read, time.Minute, 400,
		},
		{"tunnel", "CONNECT h:80 HTTP/1.1\r\nHost: h:80\r\n\r\n", read, time.Minute, 405},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			b := newBalancer(t, Config{Balancing: sut.Balancing{Sticky: true}}, hostOf(t, test.host))
			b.pool.members[0].transport.ResponseHeaderTimeout = test.timeout
			res, body := raw(t, serve(t, b), test.request)
			if res.StatusCode != test.status {
				t.Errorf("status %d, want %d: %s", res.StatusCode, test.status, body)
			}
			var answer struct{ Error string }
			if err := json.Unmarshal([]byte(body), &answer); err != nil || answer.Error == "" {
				t.Errorf("body %q", body)
			}
			if cookies := res.Header["Set-Cookie"]; len(cookies) > 0 {
				t.Errorf("an error of the balancer itself sets cookies %q", cookies)
			}
			waitFinished(t, b, fmt.Sprint(test.status))
		})
	}
}

func TestClientThatLeftIsCounted(t *testing.T) {
	t.Parallel()
	arrived := make(chan struct{})
	b := newBalancer(t, Config{}, hostOf(t, func(_ http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-r.Context().Done()
	}))
	ctx, leave := context.WithCancel(t.Context())
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+serve(t, b)+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	go func() {
		<-arrived
		leave()
	}()
	if res, err := http.DefaultTransport.RoundTrip(req); err == nil {
		t.Errorf("status %d", res.StatusCode)
		_ = res.Body.Close()
	}
	waitFinished(t, b, "499")
}

func TestEarlyHintsAndTrailersPass(t *testing.T) {
	t.Parallel()
	b := newBalancer(t, Config{}, hostOf(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Link", "</site.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Trailer", "X-Sum")
		w.WriteHeader(http.StatusOK)
		_, _ = io.WriteString(w, "body")
		w.Header().Set("X-Sum", "17")
	}))
	var hints []string
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
		Got1xxResponse: func(code int, header textproto.MIMEHeader) error {
			hints = append(hints, fmt.Sprint(code, header.Get("Link")))
			return nil
		},
	})
	req, err := http.NewRequestWithContext(ctx, "GET", "http://"+serve(t, b)+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	body, err := io.ReadAll(res.Body)
	if err != nil || string(body) != "body" || res.Trailer.Get("X-Sum") != "17" {
		t.Errorf("body %q, %v, trailer %v", body, err, res.Trailer)
	}
	if want := "[103</site.css>; rel=preload]"; fmt.Sprint(hints) != want {
		t.Errorf("hints %v, want %s", hints, want)
	}
	waitFinished(t, b, "200")
}

// TestShutdownLeaksNoGoroutine is not parallel: goleak would report the goroutines of
// other tests.
func TestShutdownLeaksNoGoroutine(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	host := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	defer host.Close()
	cfg := Config{Balancing: sut.Balancing{HealthInterval: 10 * time.Millisecond}}
	b := newBalancer(t, cfg, host.Listener.Addr().String(), "127.0.0.1:1")
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.Serve(listener) }()
	client := &http.Client{Transport: &http.Transport{}}
	for range 20 {
		res, err := client.Get("http://" + listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
	}
	client.CloseIdleConnections()
	if err := errors.Join(b.Shutdown(t.Context()), <-served); err != nil {
		t.Error(err)
	}
}

func TestBadConfigurationIsRefused(t *testing.T) {
	t.Parallel()
	if _, err := New(Config{}); err == nil || !strings.Contains(err.Error(), "node name") {
		t.Errorf("error %v, want one about the node's name", err)
	}
}

// TestRegistryIsNotShared: a second balancer on one registry is an error, because the
// metrics have no label for the balancer.
func TestRegistryIsNotShared(t *testing.T) {
	t.Parallel()
	b := newBalancer(t, Config{}, "127.0.0.1:80")
	registry := prometheus.NewRegistry()
	if _, err := Admin(registry, b); err != nil {
		t.Fatal(err)
	}
	if _, err := Admin(registry, b); err == nil {
		t.Error("a second balancer on the same registry was accepted")
	}
}

// A request over a connection above the limit gets 503, whatever it asks for, and the connection is closed.
func TestAFullBalancer(t *testing.T) {
	t.Parallel()
	host := hostOf(t, func(http.ResponseWriter, *http.Request) { t.Error("the host got the request") })
	b := newBalancer(t, Config{Full: func(context.Context) bool { return true }}, host)
	for _, method := range []string{"GET", "CONNECT"} {
		res, body := raw(t, serve(t, b), method+" / HTTP/1.1\r\nHost: x\r\n\r\n")
		if res.StatusCode != http.StatusServiceUnavailable || !res.Close || res.Header.Get("Retry-After") == "" {
			t.Errorf("%s: %d %s, close %t", method, res.StatusCode, body, res.Close)
		}
	}
}
