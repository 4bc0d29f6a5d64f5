package trace_test

import (
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/workloads/trace"
)

// TestRoundTripThroughNginx checks that nginx logs a replayed trace as it was sent,
// and that a replay of that log gives the same log.
func TestRoundTripThroughNginx(t *testing.T) {
	binary, err := exec.LookPath("nginx")
	if err != nil {
		t.Skip("nginx is not installed (Debian package nginx-light)")
	}
	var lines strings.Builder
	for i, request := range []string{
		"GET /", "GET /a?b=c&d=%20e", "HEAD /index.html", "POST /form", `GET /quote\"d`, `GET /back\\slash`,
		"GET /with space", "GET /%D0%B0%D0%B1", `GET /raw\xD0\xB0`, "DELETE /x", "GET //double//slash",
		"GET /a/../b/./c", "GET /%zz", `GET /q?x=\"y\"&z=[1]|{2}`,
		"PUT /semi;colon=1,2", "GET /a+b~c!$&'()*@:", "GET /dir/?", "GET /?", "OPTIONS /", "GET /%2F%2f",
	} {
		_, _ = fmt.Fprintf(&lines, "192.0.2.%d - - [17/May/2015:10:05:%02d +0000] \"%s HTTP/1.1\" 200 5 \"-\" \"agent\"\n",
			i%3, i/2, request)
	}
	original := read(t, lines.String())
	if n := original.Stats().Records; n != 20 {
		t.Fatalf("%d of 20 requests were read: %+v", n, original.Stats())
	}
	first := replay(t, binary, original)
	second := replay(t, binary, first)
	if diff := cmp.Diff(requests(original), requests(first)); diff != "" {
		t.Errorf("the log of nginx differs from the requests (-sent +logged)\n%s", diff)
	}
	if diff := cmp.Diff(requests(first), requests(second)); diff != "" {
		t.Errorf("the second replay differs from the first (-first +second)\n%s", diff)
	}
}

// requests returns method and path of each request of a trace.
func requests(t *trace.Trace) (all []string) {
	for _, r := range records(t) {
		all = append(all, r.Method+" "+r.Path)
	}
	return all
}

// replay starts an nginx and sends it a trace, one request after the other. It
// returns the access log of that nginx as a trace.
func replay(t *testing.T, binary string, source *trace.Trace) *trace.Trace {
	t.Helper()
	dir := t.TempDir()
	address := startNginx(t, binary, dir)
	workload, err := source.Workload()
	if err != nil {
		t.Fatal(err)
	}
	for n := range source.Len() {
		op := workload.Op(n)
		req, err := http.NewRequestWithContext(t.Context(), op.Method, "http://"+address+op.Path, nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		_ = response.Body.Close()
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	// nginx logs a request after it has sent the response, so the client may be
	// finished before the last line is written.
	log := filepath.Join(dir, "access.log")
	var text []byte
	eventually(t, "nginx has logged all requests", func() bool {
		var err error
		if text, err = os.ReadFile(log); err != nil {
			t.Fatal(err)
		}
		return strings.Count(string(text), "\n") == int(source.Len())
	})
	return read(t, string(text))
}

// eventually polls until a condition holds. It ends the test after 20 s.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, 20*time.Second, 5*time.Millisecond, what, holds)
}

// startNginx starts an nginx and returns its address. The test's cleanup stops it.
func startNginx(t *testing.T, binary, dir string) string {
	t.Helper()
	address := porttest.Free(t).String()
	config := fmt.Sprintf(`daemon off; master_process off; worker_processes 1; pid %[1]s/pid; error_log stderr emerg;
events { worker_connections 64; }
http {
	access_log %[1]s/access.log combined;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	server { listen %[2]s; merge_slashes off; location / { return 204; } }
}
`, dir, address)
	path := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary, "-p", dir, "-c", path)
	cmd.Stderr = os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait()
	})
	eventually(t, "nginx serves", func() bool {
		conn, err := net.Dial("tcp", address)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
	return address
}
