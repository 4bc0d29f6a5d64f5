package varnish_test

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/internal/servertest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/edge/edgetest"
	"github.com/stagebench/stagebench/sut/varnish"
)

// engine is varnish for the kit.
func engine(install varnish.Install) edgetest.Engine {
	return edgetest.Engine{
		Start: func(t testing.TB, cfg sut.EdgeConfig) edgetest.System {
			s := newServer(t, install, cfg)
			servertest.Start(t, s, nil)
			return edgetest.System{URL: "http://" + s.Address(), EdgeServer: s}
		},
		Differences: varnish.Differences(),
	}
}

func TestConforms(t *testing.T) {
	t.Parallel()
	edgetest.Run(t, engine(installed(t)))
}

func BenchmarkEdges(b *testing.B) { edgetest.BenchmarkEdges(b, engine(installed(b))) }

// newServer describes a server on a free port, in a new directory.
func newServer(t testing.TB, install varnish.Install, cfg sut.EdgeConfig) *varnish.Server {
	t.Helper()
	return varnish.New(config(t, install, cfg))
}

func config(t testing.TB, install varnish.Install, cfg sut.EdgeConfig) varnish.Config {
	t.Helper()
	free := porttest.Free(t)
	return varnish.Config{
		EdgeConfig: cfg, Install: install, Dir: t.TempDir(), Listen: free.Addr().AsSlice(), Port: int(free.Port()),
	}
}

// oneOrigin is the configuration of an edge with an origin whose responses may be stored.
func oneOrigin(t testing.TB, handler http.HandlerFunc) sut.EdgeConfig {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	return sut.EdgeConfig{
		Node: "edge-1", Origins: []sut.Peer{{Node: "web-1", Address: server.Listener.Addr().String()}}, MaxBytes: 8 << 20,
	}
}

func hello(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Cache-Control", "max-age=3600")
	_, _ = w.Write([]byte("hello"))
}

// get returns the status of a request, or the error.
func get(t testing.TB, address, path string) string {
	t.Helper()
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: servertest.Timeout}
	res, err := client.Get("http://" + address + path)
	if err != nil {
		return err.Error()
	}
	_ = res.Body.Close()
	return res.Status
}

// Nothing of a killed server stays: neither its child, which ends by itself, nor its entries.
func TestRestartsAfterAKill(t *testing.T) {
	t.Parallel()
	s := newServer(t, installed(t), oneOrigin(t, hello))
	for range 2 {
		p := servertest.Start(t, s, nil)
		if got := get(t, s.Address(), "/"); got != "200 OK" {
			t.Errorf("got %s", got)
		}
		f, err := s.Figures(t.Context())
		if err != nil || f.Requests != 1 || f.Entries != 1 {
			t.Errorf("figures %+v, %v, want one request and one entry", f, err)
		}
		p.Signal(t, syscall.SIGKILL)
		if err := p.Wait(t); err == nil {
			t.Error("a killed server exited with 0")
		}
		servertest.Eventually(t, "the child of a killed server ends", func() bool {
			return strings.Contains(get(t, s.Address(), "/"), "connection refused")
		})
	}
}

// The server ends at once, also while a client waits.
func TestStops(t *testing.T) {
	t.Parallel()
	arrived, release := make(chan struct{}), make(chan struct{})
	s := newServer(t, installed(t), oneOrigin(t, func(w http.ResponseWriter, r *http.Request) {
		close(arrived)
		<-release
		hello(w, r)
	}))
	p := servertest.Start(t, s, nil)
	held := make(chan string)
	go func() { held <- get(t, s.Address(), "/hold") }()
	<-arrived
	p.Signal(t, s.StopSignal())
	if err := p.Wait(t); err != nil {
		t.Errorf("exit error %v, want none", err)
	}
	if got := <-held; got == "200 OK" {
		t.Error("a request in flight ended with 200, although its origin did not answer")
	}
	close(release)
	if got := get(t, s.Address(), "/"); !strings.Contains(got, "connection refused") {
		t.Errorf("after the end: %s, want no server", got)
	}
}

// The directory is private, and its path may be longer than that of a Unix socket.
func TestLongPrivateDirectory(t *testing.T) {
	t.Parallel()
	cfg := config(t, installed(t), oneOrigin(t, hello))
	cfg.Dir = filepath.Join(t.TempDir(), strings.Repeat("deep/", 30), "with space")
	s := varnish.New(cfg)
	servertest.Start(t, s, nil)
	if got := get(t, s.Address(), "/"); got != "200 OK" {
		t.Errorf("got %s", got)
	}
	info, err := os.Stat(cfg.Dir)
	if err != nil {
		t.Fatal(err)
	}
	if got := info.Mode().Perm(); got != 0o700 {
		t.Errorf("mode of the directory %o, want 700", got)
	}
}

func TestSecondServerOnThePort(t *testing.T) {
	t.Parallel()
	cfg := config(t, installed(t), oneOrigin(t, hello))
	servertest.Start(t, varnish.New(cfg), nil)
	cfg.Dir = t.TempDir()
	second := varnish.New(cfg)
	err := second.Prepare(t.Context())
	if err == nil { // the check of the configuration does not always bind
		p := servertest.Launch(t, second.Command(), nil)
		err = p.Wait(t)
	}
	if err == nil {
		t.Error("a second server on the port exited with 0")
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	install := installed(t)
	version, err := newServer(t, install, sut.EdgeConfig{}).Version(t.Context())
	if err != nil || version != install.Version || !regexp.MustCompile(`^\d+\.\d+`).MatchString(version) {
		t.Errorf("Version() = %q, %v, want %q, such as 1.2.3", version, err, install.Version)
	}
}

// A dead server has no figures, cannot change its origins, and is not ready.
func TestNotRunning(t *testing.T) {
	t.Parallel()
	s := newServer(t, installed(t), oneOrigin(t, hello))
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Ready(t.Context()); err == nil {
		t.Error("ready")
	}
	if _, err := s.Figures(t.Context()); err == nil {
		t.Error("it has figures")
	}
	if err := s.SetOrigins(t.Context(), []sut.Peer{{Node: "web-2", Address: "127.0.0.1:1"}}); err == nil {
		t.Error("it changed its origins")
	}
}
