package haproxy_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/internal/servertest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance/balancetest"
	"github.com/stagebench/stagebench/sut/haproxy"
)

func TestConforms(t *testing.T) {
	t.Parallel()
	install := haproxyInstalled(t)
	balancetest.Run(t, func(t *testing.T, setup balancetest.Setup) balancetest.System {
		h := newHAProxy(t, install, setup.Balancing())
		servertest.Start(t, h, h.HandleLogLine)
		return balancetest.Serving(t, h.Address(), h)
	})
}

// oneHost starts a host and returns a configuration for it.
func oneHost(t testing.TB, handler http.HandlerFunc) sut.Balancing {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return sut.Balancing{Node: "lb-1", Upstreams: sut.Upstreams{
		Peers: []sut.Peer{{Node: "web-1", Address: server.Listener.Addr().String()}},
	}}
}

// hello answers every request.
func hello(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }

// get sends requests over one connection. It returns the status of each, or "closed".
func get(t *testing.T, address string, paths ...string) []string {
	t.Helper()
	conn, err := net.Dial("tcp", address)
	if err != nil {
		t.Error(err)
		return nil
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(servertest.Timeout)); err != nil {
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

func TestRestartsAfterAKill(t *testing.T) {
	t.Parallel()
	h := newHAProxy(t, haproxyInstalled(t), oneHost(t, hello))
	for range 2 {
		p := servertest.Start(t, h, h.HandleLogLine)
		if got := get(t, h.Address(), "/", "/"); fmt.Sprint(got) != "[200 200]" {
			t.Errorf("got %v", got)
		}
		p.Signal(t, syscall.SIGKILL)
		if err := p.Wait(t); err == nil {
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

func TestDrains(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	h := newHAProxy(t, haproxyInstalled(t), oneHost(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/hold" {
			arrived <- struct{}{}
			<-release
		}
		hello(w, r)
	}))
	p := servertest.Start(t, h, h.HandleLogLine)
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
	_ = res.Body.Close()
	held := make(chan []string)
	go func() { held <- get(t, h.Address(), "/hold") }()
	<-arrived
	p.Signal(t, h.StopSignal())
	servertest.Eventually(t, "the server no longer listens", func() bool {
		conn, err := net.Dial("tcp", h.Address())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	close(release)
	if got := <-held; fmt.Sprint(got) != "[200]" {
		t.Errorf("a request in flight ended with %v", got)
	}
	if err := p.Wait(t); err != nil {
		t.Errorf("exit error %v, want none", err)
	}
}

func TestSecondServerOnThePort(t *testing.T) {
	t.Parallel()
	install := haproxyInstalled(t)
	cfg := oneHost(t, hello)
	free := porttest.Free(t)
	describe := func() *haproxy.Server {
		return haproxy.New(haproxy.Config{
			Balancing: cfg, Install: install, Dir: t.TempDir(), Listen: free.Addr().AsSlice(), Port: int(free.Port()),
		})
	}
	first, second := describe(), describe()
	servertest.Start(t, first, first.HandleLogLine)
	if err := second.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := servertest.Launch(t, second.Command(), nil)
	if err := p.Wait(t); err == nil {
		t.Error("a second server on the port exited with 0")
	}
	if !strings.Contains(p.Log(), "cannot bind") {
		t.Errorf("log %q, want an error about the port", p.Log())
	}
}

// The path of the directory may be longer than the 107 bytes of a Unix socket's path.
func TestLongDirectory(t *testing.T) {
	t.Parallel()
	cfg := oneHost(t, hello)
	dir := filepath.Join(t.TempDir(), strings.Repeat("deep/", 30), "with space")
	h := newConfig(t, haproxy.Config{Balancing: cfg, Install: haproxyInstalled(t), Dir: dir, Procs: 2})
	servertest.Start(t, h, h.HandleLogLine)
	if got := get(t, h.Address(), "/"); fmt.Sprint(got) != "[200]" {
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
		t.Errorf("files in the directory: %v, want %s", names, want)
	}
}

// When a host dies during a request, the server behaves as the comment of Server says.
func TestHostDiesDuringARequest(t *testing.T) {
	t.Parallel()
	h := newHAProxy(t, haproxyInstalled(t), oneHost(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/die" {
			panic(http.ErrAbortHandler)
		}
		hello(w, r)
	}))
	servertest.Start(t, h, h.HandleLogLine)
	if got := fmt.Sprint(get(t, h.Address(), "/die")); got != "[502]" {
		t.Errorf("on the first request %s, want [502]", got)
	}
	if got := fmt.Sprint(get(t, h.Address(), "/", "/die")); got != "[200 closed]" {
		t.Errorf("on a later request %s, want [200 closed]", got)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	install := haproxyInstalled(t)
	version, err := newHAProxy(t, install, sut.Balancing{}).Version(t.Context())
	if err != nil || version != install.Version || !regexp.MustCompile(`^\d+\.\d+`).MatchString(version) {
		t.Errorf("Version() = %q, %v, want %q, such as 1.2.3", version, err, install.Version)
	}
}

// The error of Prepare contains the server's own message about the configuration.
func TestInvalidConfiguration(t *testing.T) {
	t.Parallel()
	cfg := oneHost(t, hello)
	h := newConfig(t, haproxy.Config{Balancing: cfg, Install: haproxyInstalled(t), Procs: 100_000})
	if err := h.Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), "nbthread") {
		t.Errorf("error %v, want the server's own about nbthread", err)
	}
}
