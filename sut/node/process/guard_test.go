package process

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/conns"
)

// Only processes of the system get through: neither strangers nor web pages do, not even with the secret.
func TestGuard(t *testing.T) {
	t.Parallel()
	secret := sut.NewSecret()
	reached := 0
	inner := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { reached++ })
	h := guarded(inner, secret, slog.New(slog.DiscardHandler))
	for name, c := range map[string]struct {
		host, origin, authorization string
		want                        int
	}{
		"a process of the system":  {"127.0.0.1:80", "", secret.Bearer(), http.StatusOK},
		"IPv6":                     {"[::1]:80", "", secret.Bearer(), http.StatusOK},
		"a stranger":               {"127.0.0.1:80", "", "", http.StatusUnauthorized},
		"another system":           {"127.0.0.1:80", "", sut.NewSecret().Bearer(), http.StatusUnauthorized},
		"another scheme":           {"127.0.0.1:80", "", "Basic " + string(secret), http.StatusUnauthorized},
		"a page of another site":   {"127.0.0.1:80", "https://example.org", secret.Bearer(), http.StatusForbidden},
		"a page without an origin": {"127.0.0.1:80", "null", secret.Bearer(), http.StatusForbidden},
		"a rebound name":           {"example.org:80", "", secret.Bearer(), http.StatusForbidden},
		"localhost by name":        {"localhost:80", "", secret.Bearer(), http.StatusForbidden},
	} {
		before, w := reached, httptest.NewRecorder()
		r := httptest.NewRequest(http.MethodPut, sut.WiringPath, nil)
		r.Host = c.host
		r.Header.Set("Authorization", c.authorization)
		if c.origin != "" {
			r.Header.Set("Origin", c.origin)
		}
		h.ServeHTTP(w, r)
		if w.Code != c.want || (reached > before) != (c.want == http.StatusOK) {
			t.Errorf("%s: %d, reached: %t, want %d", name, w.Code, reached > before, c.want)
		}
	}
}

// Headers above the limit are refused, and so are connections above it: they are served once and closed.
func TestServeIsBounded(t *testing.T) {
	t.Parallel()
	n := Node{Config: sut.NodeConfig{MemoryBytes: 6 * HTTPConnBytes}}
	bound, err := conns.New(n.ConnsWithin(HTTPConnBytes, maxAdminConns), nil)
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h := NewHTTP()
	h.Serve(listener, &http.Server{Handler: http.NotFoundHandler()}, bound)
	defer func() { _ = h.Stop(t.Context()) }()
	send := func(request string) (string, error) {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = conn.Close() })
		_, _ = conn.Write([]byte(request)) // the server may have closed the connection
		if !strings.HasSuffix(request, "\r\n\r\n") {
			return "", nil
		}
		answer, err := http.ReadResponse(bufio.NewReader(conn), nil)
		if err != nil {
			return "", err
		}
		defer answer.Body.Close()
		return fmt.Sprintf("%d close=%t", answer.StatusCode, answer.Close), nil
	}
	got, err := send("GET / HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 8<<10) + "\r\n\r\n")
	if got != "431 close=true" {
		t.Errorf("8 KiB of headers: %s %v, want 431", got, err)
	}
	for range 2 { // the memory is for two connections
		_, _ = send("GET / HTTP/1.1\r\n")
	}
	polltest.Eventually(t, 20*time.Second, time.Millisecond, "a connection over the limit is closed", func() bool {
		got, err := send("GET / HTTP/1.1\r\nHost: x\r\n\r\n")
		return err == nil && got == "404 close=true"
	})
}

// The number of connections depends on the memory of the node.
func TestConnsWithin(t *testing.T) {
	t.Parallel()
	for memory, want := range map[int64]int{0: 100, 1: 1, 3000: 10, 1 << 40: 100} {
		if got := (Node{Config: sut.NodeConfig{MemoryBytes: memory}}).ConnsWithin(100, 100); got != want {
			t.Errorf("%d bytes: %d connections, want %d", memory, got, want)
		}
	}
}
