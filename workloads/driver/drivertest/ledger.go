package drivertest

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// testLedger ends runs in every way in which a run can end.
func testLedger(t *testing.T, d driver.Driver) {
	runParallel(t, d,
		test{"normal end", normalEnd},
		test{"cancelled", cancelled},
		test{"cancelled after the end of the schedule", cancelledLate},
		test{"target killed", targetKilled},
		test{"connections refused", connectionsRefused},
		test{"end with a backlog", endWithBacklog},
		test{"timeouts", timeouts},
	)
}

func normalEnd(t *testing.T, d driver.Driver) {
	server, served := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("n") == "7" {
			w.WriteHeader(http.StatusTeapot)
		}
	})
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 16, rate: 1000, duration: time.Second, workload: numbered{mod: 10},
	})
	m.check(t, served.Load())
	want := results.Ledger{Scheduled: 1000, Sent: 1000, OK: 900, HTTPError: 100}
	if m.step.Ledger != want {
		t.Errorf("ledger %+v, want %+v", m.step.Ledger, want)
	}
}

// cancelled cancels a run whose schedule is much longer.
func cancelled(t *testing.T, d driver.Driver) {
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	release := make(chan struct{})
	defer close(release)
	server, served := countingServer(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("n") == "3" {
			cancel()
			<-release // no response before the run ends
		}
	})
	m := send(ctx, t, d, setup{
		endpoint: server.URL, connections: 16, rate: 1000, duration: time.Hour, drain: 50 * time.Millisecond,
		workload: numbered{mod: 100},
	})
	m.check(t, served.Load())
	if l := m.step.Ledger; l.InFlight == 0 || l.Scheduled > 100_000 {
		t.Errorf("ledger %+v, want some ops in flight and none that was due after the cancellation", l)
	}
}

// cancelledLate cancels a run after all ops were sent, while one op waits for a response
// that never comes. The run must end after the drain time, not after the op's timeout.
func cancelledLate(t *testing.T, d driver.Driver) {
	const length = 200 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server, served := countingServer(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("n") == "3" {
			time.AfterFunc(10*length, cancel)
			<-r.Context().Done()
		}
	})
	m := send(ctx, t, d, setup{
		endpoint: server.URL, connections: 16, rate: 100, duration: length, timeout: 20 * time.Second,
		drain: 50 * time.Millisecond, grace: 5 * length, workload: numbered{mod: 100},
	})
	m.check(t, served.Load())
	if l := m.step.Ledger; l.InFlight != 1 || l.Scheduled != 20 {
		t.Errorf("ledger %+v, want 20 scheduled ops and the op without a response in flight", l)
	}
}

// targetKilled stops the target during the run. Requests in flight break, and later
// connections are refused.
func targetKilled(t *testing.T, d driver.Driver) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served atomic.Int64
	var server *http.Server
	dead := make(chan struct{})
	handler := func(_ http.ResponseWriter, r *http.Request) {
		switch n := served.Add(1); {
		case n == 300:
			_ = server.Close()
			close(dead)
		case n > 290:
			<-r.Context().Done()
		}
	}
	server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(handler)}
	go func() { _ = server.Serve(listener) }()
	m := send(t.Context(), t, d, setup{
		endpoint: "http://" + listener.Addr().String(), connections: 32, rate: 1000, duration: time.Second,
	})
	<-dead
	m.check(t, served.Load())
	if l := m.step.Ledger; l.TransportError == 0 || l.ConnectError == 0 || l.OK < 290 {
		t.Errorf("ledger %+v, want broken and refused connections after 300 requests", l)
	}
	if len(m.step.Outages) != 1 || m.step.Outages[0].Failed != m.step.Ledger.Errors() {
		t.Errorf("outages %+v, want one with all %d failures", m.step.Outages, m.step.Ledger.Errors())
	}
}

func connectionsRefused(t *testing.T, d driver.Driver) {
	m := send(t.Context(), t, d, setup{
		endpoint: "http://127.0.0.1:1", connections: 4, rate: 500, duration: 500 * time.Millisecond,
	})
	m.check(t, 0)
	if l := m.step.Ledger; l.ConnectError != 250 || m.step.Causes["connection refused"] != 250 {
		t.Errorf("ledger %+v, causes %v: want 250 refused connections", l, m.step.Causes)
	}
}

// endWithBacklog offers 1000 ops/s to 4 connections that carry 40/s.
func endWithBacklog(t *testing.T, d driver.Driver) {
	server, served := countingServer(t, func(_ http.ResponseWriter, r *http.Request) {
		respond := time.NewTimer(100 * time.Millisecond)
		defer respond.Stop()
		select {
		case <-respond.C:
		case <-r.Context().Done():
		}
	})
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 4, rate: 1000, duration: time.Second, grace: 100 * time.Millisecond,
	})
	m.check(t, served.Load())
	if l := m.step.Ledger; l.Scheduled != 1000 || l.Unsent < 900 {
		t.Errorf("ledger %+v, want 1000 scheduled ops and at least 900 of them unsent", l)
	}
}

// timeouts sends some ops that are never answered.
func timeouts(t *testing.T, d driver.Driver) {
	server, served := countingServer(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("n") == "0" {
			<-r.Context().Done()
		}
	})
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 32, rate: 200, duration: time.Second / 2, timeout: 500 * time.Millisecond,
		workload: numbered{mod: 10},
	})
	m.check(t, served.Load())
	for _, o := range m.outcomes {
		if o.Index%10 != 0 {
			continue
		}
		// The response time, not the service time: the timeout includes the time to connect.
		if o.Fate != results.Timeout || time.Duration(o.Response()) < 499*time.Millisecond {
			t.Errorf("op %d without a response: fate %v, response time %v: want a timeout after at least 500 ms",
				o.Index, o.Fate, time.Duration(o.Response()))
		}
		if !strings.Contains(o.Error, "within 500ms") {
			t.Errorf("op %d: %q does not name the timeout", o.Index, o.Error)
		}
	}
	failed, service := m.step.FailedNS, m.step.FailedServiceNS
	if failed.Count != 10 || service.Count != 10 || *failed.Max < int64(499*time.Millisecond) {
		t.Errorf("times until the failures %+v, %+v: want 10 of at least 500 ms", failed, service)
	}
}

// testRequests checks that the server receives exactly the request of the workload, and
// that the outcome contains the metadata of the response.
func testRequests(t *testing.T, d driver.Driver) {
	body := []byte("the body of the request")
	server, served := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
		got, _ := io.ReadAll(r.Body)
		if string(got) != string(body) || r.Method != http.MethodPut || r.URL.RequestURI() != "/a/b?c=d" ||
			r.Header.Get("X-Test") != "yes" {
			http.Error(w, "unexpected request", http.StatusBadRequest)
			return
		}
		for name := range r.Header {
			if name != "X-Test" && name != "User-Agent" && name != "Content-Length" {
				http.Error(w, "unexpected header "+name, http.StatusBadRequest)
				return
			}
		}
		w.Header().Set(driver.VersionHeader, "42")
		w.Header().Set(driver.CacheHeader, driver.CacheHit)
		w.Header().Add(driver.CacheStatusHeader, `origin; hit; ttl=3, middle; fwd=uri-miss; stored`)
		w.Header().Add(driver.CacheStatusHeader, `edge-1; fwd=stale; fwd-status=304`)
		_, _ = w.Write(make([]byte, 100_000))
	})
	workload, err := workloads.Single(http.MethodPut, "/a/b?c=d", map[string]string{"X-Test": "yes"}, body)
	if err != nil {
		t.Fatal(err)
	}
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 8, rate: 400, duration: time.Second / 2, workload: workload,
	})
	m.check(t, served.Load())
	if m.step.Ledger.OK != 200 {
		t.Fatalf("ledger %+v, causes %v: want 200 successes", m.step.Ledger, m.step.Causes)
	}
	if o := m.outcomes[0]; o.Version != 42 || !o.Cached || o.Edge != "stale" ||
		o.BytesIn != 100_000 || o.BytesOut != int64(len(body)) {
		t.Errorf("outcome %+v: want version 42 from a cache, revalidated by an edge, 100000 bytes in, %d out", o, len(body))
	}
}

// numbered is a workload of GET requests. The query parameter n is the op's index modulo
// mod.
type numbered struct{ mod uint64 }

func (numbered) Name() string { return "numbered" }
func (numbered) Users() int   { return 0 }
func (w numbered) Op(n uint64) workloads.Op {
	path := "/?n=" + strconv.FormatUint(n%w.mod, 10)
	return workloads.Op{Index: n, Class: "get", Method: http.MethodGet, Path: path, User: -1}
}
