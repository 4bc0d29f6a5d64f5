package drivertest

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"regexp"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// clients are what a driver's clients do besides sending: they check answers,
// fail over, prove who they are, and may have a slow line.
func clients(t *testing.T, d driver.Driver) {
	t.Run("checks", func(t *testing.T) { checks(t, d) })
	t.Run("failover", func(t *testing.T) { failover(t, d) })
	t.Run("headers of all requests", func(t *testing.T) { headers(t, d) })
	t.Run("TLS", func(t *testing.T) { security(t, d) })
	t.Run("slow lines", func(t *testing.T) { slowLines(t, d) })
	t.Run("slow lines that are turned away", func(t *testing.T) { turnedAway(t, d) })
}

// listed is a workload of ops that are written out, in turns.
type listed []workloads.Op

func (listed) Name() string { return "listed" }
func (listed) Users() int   { return 0 }
func (l listed) Op(n uint64) workloads.Op {
	op := l[n%uint64(len(l))]
	op.Index, op.User = n, -1
	return op
}

// checks asks for answers that are there and for some that are not.
func checks(t *testing.T, d driver.Driver) {
	server, served := counting(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		if r.URL.Path == "/missing" {
			w.WriteHeader(http.StatusNotFound)
		}
		_, _ = io.WriteString(w, `{"stock": 12}`)
	})
	get := func(class workloads.Class, path string, check workloads.Check) workloads.Op {
		return workloads.Op{Class: class, Method: http.MethodGet, Path: path, Check: &check}
	}
	y := Send(t.Context(), t, d, Setup{Endpoint: server.URL, Connections: 4, Rate: 350, Duration: time.Second, Workload: listed{
		get("good", "/", workloads.Check{Status: []int{200}, Contains: []string{`"stock"`}, Matches: []*regexp.Regexp{regexp.MustCompile(`: \d+}`)}, Header: map[string]string{"content-type": "json"}, MinBytes: 13, MaxBytes: 13}),
		get("expected-404", "/missing", workloads.Check{Status: []int{200, 404}}),
		get("status", "/", workloads.Check{Status: []int{201}}),
		get("text", "/", workloads.Check{Contains: []string{"sold out"}}),
		get("header", "/", workloads.Check{Header: map[string]string{"ETag": ""}}),
		get("length", "/", workloads.Check{MaxBytes: 12}),
		get("error", "/missing", workloads.Check{Contains: []string{"stock"}}),
	}})
	y.Check(t, served.Load())
	if l := y.Step.Ledger; l.OK != 100 || l.HTTPError != 250 || l.CheckFailed != 200 || l.Errors() != 250 {
		t.Errorf("ledger %+v: want 100 of 350 good, 250 errors, 200 of them failed checks", l)
	}
	for cause, want := range map[string]int64{
		"HTTP 200": 50, `check: body without "sold out"`: 50, `check: header ETag without ""`: 50, "check: body above 12 bytes": 50, "HTTP 404": 50,
	} {
		if got := y.Step.Causes[cause]; got != want {
			t.Errorf("cause %q %d times, want %d; causes %v", cause, got, want, y.Step.Causes)
		}
	}
}

// failover spreads connections over two addresses, and loses one of them.
func failover(t *testing.T, d driver.Driver) {
	first, servedFirst := counting(t, func(http.ResponseWriter, *http.Request) {})
	second, servedSecond := counting(t, func(http.ResponseWriter, *http.Request) {})
	clients := makeClients(t, first.URL, driver.ClientConfig{
		Connections: 4, Addresses: []string{first.Listener.Addr().String(), second.Listener.Addr().String()},
	})
	y := SendWith(t.Context(), t, d, clients, Setup{Rate: 400, Duration: time.Second})
	y.Check(t, servedFirst.Load()+servedSecond.Load())
	if a, b := servedFirst.Load(), servedSecond.Load(); a+b != 400 || a < 50 || b < 50 {
		t.Errorf("the two addresses served %d and %d of 400, want a share each", a, b)
	}
	first.CloseClientConnections()
	first.Close()
	y = SendWith(t.Context(), t, d, clients, Setup{Rate: 400, Duration: time.Second})
	// A connection that was idle when the host died is found dead before a byte is
	// written to it, or in a rare case after: that request is lost.
	if l := y.Step.Ledger; l.OK < 396 || l.ConnectError != 0 {
		t.Errorf("ledger %+v, causes %v: want all of 400 served by the address that is left", l, y.Step.Causes)
	}
}

// headers are set for all requests, and an op may override them.
func headers(t *testing.T, d driver.Driver) {
	var wrong atomic.Int64
	server, served := counting(t, func(_ http.ResponseWriter, r *http.Request) {
		user, password, _ := r.BasicAuth()
		if user != "u" || password != "p:w" || r.Host != "shop.example" || r.Header.Get("X-Kind") != map[string]string{"/own": "own", "/all": "all"}[r.URL.Path] {
			wrong.Add(1)
		}
	})
	clients := makeClients(t, server.URL, driver.ClientConfig{Connections: 2, Header: map[string]string{
		"Authorization": "Basic dTpwOnc=", "Host": "shop.example", "x-kind": "all",
	}})
	y := SendWith(t.Context(), t, d, clients, Setup{Rate: 100, Duration: time.Second, Workload: listed{
		{Class: "get", Method: http.MethodGet, Path: "/all"},
		{Class: "get", Method: http.MethodGet, Path: "/own", Header: map[string]string{"X-Kind": "own"}},
	}})
	y.Check(t, served.Load())
	if y.Step.Ledger.OK != 100 || wrong.Load() != 0 {
		t.Errorf("%d of %d requests came with the wrong headers", wrong.Load(), served.Load())
	}
}

// security speaks TLS to a server whose certificate is trusted, and to one whose
// is not.
func security(t *testing.T, d driver.Driver) {
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
	server.Config.ErrorLog = log.New(io.Discard, "", 0) // what the clients refuse is told to them
	server.StartTLS()
	t.Cleanup(server.Close)
	trusted := x509.NewCertPool()
	trusted.AddCert(server.Certificate())
	for name, c := range map[string]struct {
		config *tls.Config
		ok     int64
	}{"trusted": {&tls.Config{RootCAs: trusted}, 50}, "not trusted": {nil, 0}} {
		t.Run(name, func(t *testing.T) {
			clients := makeClients(t, server.URL, driver.ClientConfig{Connections: 2, TLS: c.config})
			y := SendWith(t.Context(), t, d, clients, Setup{Rate: 50, Duration: time.Second})
			y.Check(t, -1)
			if l := y.Step.Ledger; l.OK != c.ok || l.OK+l.ConnectError != 50 {
				t.Errorf("ledger %+v, causes %v: want %d of 50 good, and no connection for the rest", l, y.Step.Causes, c.ok)
			}
		})
	}
}

// slowLines sends bodies slowly. The server sees them trickle in; what the line
// takes is no slowness of the server.
func slowLines(t *testing.T, d driver.Driver) {
	var quickest atomic.Int64
	quickest.Store(int64(time.Hour))
	server, served := counting(t, func(w http.ResponseWriter, r *http.Request) {
		begin := time.Now()
		if n, err := io.Copy(io.Discard, r.Body); n != 1000 || err != nil {
			w.WriteHeader(http.StatusBadRequest)
		}
		if took := int64(time.Since(begin)); took < quickest.Load() {
			quickest.Store(took)
		}
	})
	op := workloads.Op{Class: "upload", Write: true, Method: http.MethodPost, Path: "/", Body: make([]byte, 1000), BodyRate: 400}
	// Shorter than the line takes: that comes on top.
	y := Send(t.Context(), t, d, Setup{Endpoint: server.URL, Connections: 20, Rate: 20, Duration: time.Second, Workload: listed{op}, Timeout: 2200 * time.Millisecond})
	y.Check(t, served.Load())
	if y.Step.Ledger.OK != 20 || time.Duration(quickest.Load()) < 2*time.Second {
		t.Errorf("%d of 20 answered, the quickest body came within %v: want all, and none in less than about 2.5 s", y.Step.Ledger.OK, time.Duration(quickest.Load()))
	}
	for _, o := range y.Outcomes {
		if o.Service() < int64(2250*time.Millisecond) || o.Service()-o.Paced != o.Response()-o.Wait() || o.Paced < int64(2*time.Second) {
			t.Errorf("op %d: service %v, paced %v, response %v", o.Index, time.Duration(o.Service()), time.Duration(o.Paced), time.Duration(o.Response()))
		}
	}
}

// turnedAway answers before the body is there, as a server does that is full.
func turnedAway(t *testing.T, d driver.Driver) {
	server, served := counting(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
		w.WriteHeader(http.StatusServiceUnavailable)
	})
	op := workloads.Op{Class: "upload", Write: true, Method: http.MethodPost, Path: "/", Body: make([]byte, 100_000), BodyRate: 10_000}
	y := Send(t.Context(), t, d, Setup{Endpoint: server.URL, Connections: 20, Rate: 20, Duration: time.Second, Workload: listed{op}})
	y.Check(t, served.Load())
	if l := y.Step.Ledger; l.HTTPError+l.TransportError != 20 {
		t.Errorf("ledger %+v, causes %v: want 20 requests turned away", l, y.Step.Causes)
	}
	for _, o := range y.Outcomes {
		if o.Response() < 0 || o.Done-o.Sent > int64(8*time.Second) {
			t.Errorf("op %d: response %v after %v: want an answer before the body's end", o.Index, time.Duration(o.Response()), time.Duration(o.Done-o.Sent))
		}
	}
}

// makeClients makes clients that end with the test.
func makeClients(t testing.TB, endpoint string, config driver.ClientConfig) *driver.Clients {
	t.Helper()
	clients, err := newClients(endpoint, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clients.Close)
	return clients
}
