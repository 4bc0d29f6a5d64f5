package balance_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance"
	"github.com/stagebench/stagebench/sut/balance/balancetest"
)

func TestHAProxyConforms(t *testing.T) {
	t.Parallel()
	install := haproxyInstalled(t)
	balancetest.Run(t, func(t *testing.T, setup balancetest.Setup) balancetest.System {
		h := newHAProxy(t, install, balance.Config{
			Upstreams: setup.Upstreams, Routes: setup.Routes, Layer: setup.Layer, Policy: setup.Policy, Sticky: setup.Sticky,
			EjectAfter: setup.EjectAfter, HealthInterval: setup.HealthInterval, HealthTimeout: 5 * time.Second,
		})
		startHAProxy(t, h)
		return balancetest.System{URL: "http://" + h.Address(), Admin: h.Admin()}
	})
}

// oneHost is a configuration for a host that runs in this process.
func oneHost(t testing.TB, handler http.HandlerFunc) balance.Config {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return balance.Config{Upstreams: []sut.Peer{{Node: "web-1", Address: server.Listener.Addr().String()}}}
}

// say answers with a word.
func say(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

// ask sends requests over one connection and returns what came back, each as a
// status or "closed".
func ask(t *testing.T, address string, paths ...string) []string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		t.Error(err)
	}
	reader := bufio.NewReader(conn)
	var got []string
	for _, path := range paths {
		_, _ = fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path)
		res, err := http.ReadResponse(reader, nil)
		if err != nil {
			return append(got, "closed")
		}
		if _, err := io.Copy(io.Discard, res.Body); err != nil {
			t.Error(err)
		}
		got = append(got, fmt.Sprint(res.StatusCode))
	}
	return got
}

func TestHAProxyRestartsAfterAKill(t *testing.T) {
	t.Parallel()
	h := newHAProxy(t, haproxyInstalled(t), oneHost(t, say))
	for range 2 {
		p := startHAProxy(t, h)
		if got := ask(t, h.Address(), "/", "/"); fmt.Sprint(got) != "[200 200]" {
			t.Errorf("got %v", got)
		}
		p.signal(t, syscall.SIGKILL)
		if err := p.wait(t); err == nil {
			t.Error("a killed server exited with 0")
		}
		if err := h.Ready(t.Context()); err == nil {
			t.Error("a dead server is ready")
		}
		if _, err := h.Status(t.Context()); err == nil {
			t.Error("a dead server has a status")
		}
	}
}

func TestHAProxyDrains(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	h := newHAProxy(t, haproxyInstalled(t), oneHost(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			arrived <- struct{}{}
			<-release
		}
		say(w, r)
	}))
	p := startHAProxy(t, h)
	idle, err := net.Dial("tcp", h.Address())
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close()
	_, _ = io.WriteString(idle, "GET / HTTP/1.1\r\nHost: h\r\n\r\n")
	res, err := http.ReadResponse(bufio.NewReader(idle), nil)
	if err != nil {
		t.Fatal(err)
	}
	_ = res.Body.Close() // it came whole
	held := make(chan []string)
	go func() { held <- ask(t, h.Address(), "/hold") }()
	<-arrived
	p.signal(t, h.StopSignal())
	deadline := time.After(patience)
	for refused := false; !refused; {
		conn, err := net.Dial("tcp", h.Address())
		if refused = err != nil; !refused {
			_ = conn.Close()
		}
		select {
		case <-deadline:
			t.Fatal("it still listens")
		case <-time.After(5 * time.Millisecond):
		}
	}
	close(release)
	if got := <-held; fmt.Sprint(got) != "[200]" {
		t.Errorf("a request in flight ended with %v", got)
	}
	if err := p.wait(t); err != nil {
		t.Errorf("it exited with %v, want 0", err)
	}
}

func TestHAProxyIsAloneOnItsPort(t *testing.T) {
	t.Parallel()
	install := haproxyInstalled(t)
	cfg := oneHost(t, say)
	cfg.Node = "lb-1"
	port := freePort(t)
	describe := func() *balance.HAProxy {
		return balance.NewHAProxy(balance.HAProxyConfig{Config: cfg, Install: install, Dir: t.TempDir(), Listen: net.IPv4(127, 0, 0, 1), Port: port})
	}
	first, second := describe(), describe()
	startHAProxy(t, first)
	if err := second.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := launch(t, second.Command())
	if err := p.wait(t); err == nil {
		t.Error("a second server on the port exited with 0")
	}
	if !strings.Contains(p.log(), "cannot bind") {
		t.Errorf("it says %q", p.log())
	}
}

// TestHAProxyInADeepDirectory: the path of a Unix socket may have 107 bytes, the
// directory's may have more.
func TestHAProxyInADeepDirectory(t *testing.T) {
	t.Parallel()
	cfg := oneHost(t, say)
	cfg.Node = "lb-1"
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30), "with space")
	h := balance.NewHAProxy(balance.HAProxyConfig{
		Config: cfg, Install: haproxyInstalled(t), Dir: dir, Listen: net.IPv4(127, 0, 0, 1), Port: freePort(t), Procs: 2,
	})
	startHAProxy(t, h)
	if got := ask(t, h.Address(), "/"); fmt.Sprint(got) != "[200]" {
		t.Errorf("got %v", got)
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	if want := "[haproxy.cfg stats.sock]"; fmt.Sprint(names) != want {
		t.Errorf("its directory holds %v, want %s", names, want)
	}
}

// TestDeathUnderARequest holds the two engines to what the comment of HAProxy
// says about their difference.
func TestDeathUnderARequest(t *testing.T) {
	t.Parallel()
	host := func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/die" {
			panic(http.ErrAbortHandler)
		}
		say(w, r)
	}
	ours := startBalancer(t, balancetest.Setup{Upstreams: oneHost(t, host).Upstreams, HealthInterval: time.Second})
	native := newHAProxy(t, haproxyInstalled(t), oneHost(t, host))
	startHAProxy(t, native)
	for _, test := range []struct {
		name, address, first, later string
	}{
		{"balance", strings.TrimPrefix(ours.URL, "http://"), "[502]", "[200 502]"},
		{"haproxy", native.Address(), "[502]", "[200 closed]"},
	} {
		if got := fmt.Sprint(ask(t, test.address, "/die")); got != test.first {
			t.Errorf("%s: on the first request %s, want %s", test.name, got, test.first)
		}
		if got := fmt.Sprint(ask(t, test.address, "/", "/die")); got != test.later {
			t.Errorf("%s: on a later request %s, want %s", test.name, got, test.later)
		}
	}
}

func TestHAProxyVersion(t *testing.T) {
	t.Parallel()
	install := haproxyInstalled(t)
	version, err := newHAProxy(t, install, balance.Config{}).Version(t.Context())
	if err != nil || version != install.Version {
		t.Errorf("Version() = %q, %v, want %q", version, err, install.Version)
	}
}

// TestHAProxyExplainsARefusal: what the server says about its configuration
// reaches whoever prepares it.
func TestHAProxyExplainsARefusal(t *testing.T) {
	t.Parallel()
	cfg := oneHost(t, say)
	cfg.Node = "lb-1"
	h := balance.NewHAProxy(balance.HAProxyConfig{
		Config: cfg, Install: haproxyInstalled(t), Dir: t.TempDir(), Listen: net.IPv4(127, 0, 0, 1), Port: freePort(t), Procs: 100_000,
	})
	if err := h.Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), "nbthread") {
		t.Errorf("error %v, want the server's own about nbthread", err)
	}
}
