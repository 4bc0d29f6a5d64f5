package drivertest

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// testClients checks what the clients do besides sending: checks of responses, failover
// between addresses, authentication, TLS and slow uploads.
func testClients(t *testing.T, d driver.Driver) {
	runParallel(t, d,
		test{"checks", checks},
		test{"failover", failover},
		test{"fallback", fallback},
		test{"one source address for each user", sourcePerUser},
		test{"headers of all requests", headers},
		test{"TLS with a trusted certificate", trustedCertificate},
		test{"TLS with an unknown certificate", unknownCertificate},
		test{"slow uploads", slowUploads},
		test{"slow uploads that the server refuses", slowUploadsRefused},
	)
}

// listed is a workload that repeats a list of ops.
type listed []workloads.Op

func (listed) Name() string { return "listed" }
func (listed) Users() int   { return 0 }
func (l listed) Op(n uint64) workloads.Op {
	op := l[n%uint64(len(l))]
	op.Index, op.User = n, -1
	return op
}

// checks sends ops whose check passes and ops whose check fails.
func checks(t *testing.T, d driver.Driver) {
	server, served := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/missing" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, `{"stock": 12}`)
	})
	get := func(class workloads.Class, path string, check workloads.Check) workloads.Op {
		return workloads.Op{Class: class, Method: http.MethodGet, Path: path, Check: &check}
	}
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 4, rate: 700, duration: time.Second / 2,
		workload: listed{
			get("good", "/", workloads.Check{
				Status: []int{200}, Contains: []string{`"stock"`}, Matches: []*regexp.Regexp{regexp.MustCompile(`: \d+}`)},
				Header: map[string]string{"content-type": "json"}, MinBytes: 13, MaxBytes: 13,
			}),
			get("expected-404", "/missing", workloads.Check{Status: []int{200, 404}}),
			get("status", "/", workloads.Check{Status: []int{201}}),
			get("text", "/", workloads.Check{Contains: []string{"sold out"}}),
			get("header", "/", workloads.Check{Header: map[string]string{"ETag": ""}}),
			get("length", "/", workloads.Check{MaxBytes: 12}),
			get("error", "/missing", workloads.Check{Contains: []string{"stock"}}),
		},
	})
	m.check(t, served.Load())
	if l := m.step.Ledger; l.OK != 100 || l.HTTPError != 250 || l.CheckFailed != 200 || l.Errors() != 250 {
		t.Errorf("ledger %+v: want 100 of 350 ops good and 250 errors, of which 200 are failed checks", l)
	}
	for cause, want := range map[string]int64{
		"HTTP 200":                       50,
		"HTTP 404":                       50,
		`check: body without "sold out"`: 50,
		`check: header ETag without ""`:  50,
		"check: body above 12 bytes":     50,
	} {
		if got := m.step.Causes[cause]; got != want {
			t.Errorf("cause %q: %d times, want %d; causes %v", cause, got, want, m.step.Causes)
		}
	}
}

// failover spreads connections over two addresses and then closes the first of them.
func failover(t *testing.T, d driver.Driver) {
	first, servedFirst := countingServer(t, reply)
	second, servedSecond := countingServer(t, reply)
	clients := makeClients(t, first.URL, driver.ClientConfig{
		Connections: 4, Addresses: []string{first.Listener.Addr().String(), second.Listener.Addr().String()},
	})
	m := sendWith(t.Context(), t, d, clients, setup{rate: 800, duration: time.Second / 2})
	m.check(t, servedFirst.Load()+servedSecond.Load())
	if a, b := servedFirst.Load(), servedSecond.Load(); a+b != 400 || a < 50 || b < 50 {
		t.Errorf("the two addresses served %d and %d of 400 requests: want at least 50 each", a, b)
	}
	first.CloseClientConnections()
	first.Close()
	m = sendWith(t.Context(), t, d, clients, setup{rate: 800, duration: time.Second / 2})
	// The client usually notices that an idle connection was closed before it writes a
	// request. In rare cases it notices later, and the request is lost.
	if l := m.step.Ledger; l.OK < 396 || l.ConnectError != 0 {
		t.Errorf("ledger %+v, causes %v: want all 400 requests served by the second address", l, m.step.Causes)
	}
}

// fallback checks that clients use a fallback only while no address accepts connections.
func fallback(t *testing.T, d driver.Driver) {
	near, servedNear := countingServer(t, reply)
	far, servedFar := countingServer(t, reply)
	address := near.Listener.Addr().String()
	clients := makeClients(t, near.URL, driver.ClientConfig{
		Connections: 4, Addresses: []string{address}, Fallbacks: []string{far.Listener.Addr().String()},
	})
	run := func() results.Ledger {
		return sendWith(t.Context(), t, d, clients, setup{rate: 200, duration: 2 * time.Second}).step.Ledger
	}
	if l := run(); l.OK != 400 || servedFar.Load() != 0 {
		t.Errorf("ledger %+v, %d at the fallback: want none there", l, servedFar.Load())
	}
	near.CloseClientConnections()
	near.Close()
	// As in failover, a request may be lost on a connection that has just been closed.
	if l := run(); l.OK < 396 || l.ConnectError != 0 || servedFar.Load() < 396 {
		t.Errorf("ledger %+v, %d at the fallback: want all 400 there", l, servedFar.Load())
	}
	listener, err := net.Listen("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	back := &http.Server{Handler: near.Config.Handler}
	go func() { _ = back.Serve(listener) }() // ends with Close
	defer func() { _ = back.Close() }()
	before := servedNear.Load()
	if l := run(); l.OK != 400 || servedNear.Load() == before {
		t.Errorf("ledger %+v, %d at the address that is back: want some there", l, servedNear.Load()-before)
	}
}

// headers checks that clients send their configured headers with every request, and that
// an op can override them.
func headers(t *testing.T, d driver.Driver) {
	kinds := map[string]string{"/own": "own", "/all": "all"} // wanted X-Kind by path
	var wrong atomic.Int64
	server, served := countingServer(t, func(_ http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		kind := r.Header.Get("X-Kind")
		if user != "u" || password != "p:w" || r.Host != "shop.example" || kind != kinds[r.URL.Path] {
			wrong.Add(1)
		}
	})
	clients := makeClients(t, server.URL, driver.ClientConfig{Connections: 2, Header: map[string]string{
		"Authorization": "Basic dTpwOnc=", "Host": "shop.example", "x-kind": "all",
	}})
	m := sendWith(t.Context(), t, d, clients, setup{rate: 200, duration: time.Second / 2, workload: listed{
		{Class: "get", Method: http.MethodGet, Path: "/all"},
		{Class: "get", Method: http.MethodGet, Path: "/own", Header: map[string]string{"X-Kind": "own"}},
	}})
	m.check(t, served.Load())
	if m.step.Ledger.OK != 100 || wrong.Load() != 0 {
		t.Errorf("%d of %d requests had wrong headers", wrong.Load(), served.Load())
	}
}

// trustedCertificate trusts the certificate of the server.
func trustedCertificate(t *testing.T, d driver.Driver) {
	server := startTLS(t)
	trusted := x509.NewCertPool()
	trusted.AddCert(server.Certificate())
	step := sendTLS(t, d, server, &tls.Config{RootCAs: trusted})
	if step.Ledger.OK != 50 {
		t.Errorf("ledger %+v, causes %v: want 50 successes", step.Ledger, step.Causes)
	}
}

// unknownCertificate trusts only the certificates of the system.
func unknownCertificate(t *testing.T, d driver.Driver) {
	step := sendTLS(t, d, startTLS(t), nil)
	if step.Ledger.ConnectError != 50 {
		t.Errorf("ledger %+v, causes %v: want 50 failed connections", step.Ledger, step.Causes)
	}
}

// sendTLS sends 50 ops to a TLS server.
func sendTLS(t *testing.T, d driver.Driver, server *httptest.Server, config *tls.Config) results.Step {
	clients := makeClients(t, server.URL, driver.ClientConfig{Connections: 2, TLS: config})
	m := sendWith(t.Context(), t, d, clients, setup{rate: 100, duration: time.Second / 2})
	m.check(t, -1)
	return m.step
}

func startTLS(t *testing.T) *httptest.Server {
	server := httptest.NewUnstartedServer(http.HandlerFunc(reply))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // clients that refuse the certificate cause errors
	server.StartTLS()
	t.Cleanup(server.Close)
	return server
}

// slowUploads sends bodies over slow connections. The upload time must not count as
// response time of the target.
func slowUploads(t *testing.T, d driver.Driver) {
	var shortest atomic.Int64 // time in which a body arrived, ns
	shortest.Store(int64(time.Hour))
	server, served := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		if n, err := io.Copy(io.Discard, r.Body); n != 1000 || err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		took := int64(time.Since(begin))
		for old := shortest.Load(); took < old && !shortest.CompareAndSwap(old, took); {
			old = shortest.Load()
		}
	})
	op := workloads.Op{
		Class: "upload", Write: true, Method: http.MethodPost, Path: "/", Body: make([]byte, 1000), BodyRate: 400,
	}
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 20, rate: 40, duration: time.Second / 2, workload: listed{op},
		timeout: 2200 * time.Millisecond, // less than an upload takes: the upload time is added to it
	})
	m.check(t, served.Load())
	if took := time.Duration(shortest.Load()); m.step.Ledger.OK != 20 || took < 2*time.Second {
		t.Errorf("%d of 20 uploads succeeded, the fastest within %v: want all, each in about 2.5 s", m.step.Ledger.OK, took)
	}
	for _, o := range m.outcomes {
		service, paced, response := time.Duration(o.Service()), time.Duration(o.Paced), time.Duration(o.Response())
		if service < 2250*time.Millisecond || paced < 2*time.Second || service-paced != response-time.Duration(o.Wait()) {
			t.Errorf("op %d: service %v, paced %v, response %v", o.Index, service, paced, response)
		}
	}
}

// slowUploadsRefused answers before the body has arrived, as an overloaded server does.
func slowUploadsRefused(t *testing.T, d driver.Driver) {
	server, served := countingServer(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	op := workloads.Op{
		Class: "upload", Write: true, Method: http.MethodPost, Path: "/", Body: make([]byte, 100_000), BodyRate: 10_000,
	}
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 20, rate: 40, duration: time.Second / 2, workload: listed{op},
	})
	m.check(t, served.Load())
	if l := m.step.Ledger; l.HTTPError+l.TransportError != 20 {
		t.Errorf("ledger %+v, causes %v: want 20 refused requests", l, m.step.Causes)
	}
	for _, o := range m.outcomes {
		response, took := time.Duration(o.Response()), time.Duration(o.Service())
		if response < 0 || took > 8*time.Second {
			t.Errorf("op %d: response %v after %v: want an answer before the upload ends after 10 s", o.Index, response, took)
		}
	}
}
