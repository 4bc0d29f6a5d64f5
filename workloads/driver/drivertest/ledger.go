package drivertest

import (
	"context"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// ledger ends runs in every way in which they can end.
func ledger(t *testing.T, d driver.Driver) {
	t.Run("normal end", func(t *testing.T) {
		server, served := counting(t, func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("n") == "7" {
				w.WriteHeader(http.StatusTeapot)
			}
		})
		y := Send(t.Context(), t, d, Setup{Endpoint: server.URL, Connections: 16, Rate: 1000, Duration: time.Second, Workload: numbered{mod: 10}})
		y.Check(t, served.Load())
		want := results.Ledger{Scheduled: 1000, Sent: 1000, OK: 900, HTTPError: 100}
		if y.Step.Ledger != want {
			t.Errorf("ledger %+v, want %+v", y.Step.Ledger, want)
		}
	})
	t.Run("cancelled", func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		release := make(chan struct{})
		defer close(release)
		server, served := counting(t, func(_ http.ResponseWriter, r *http.Request) {
			if r.URL.Query().Get("n") == "3" {
				cancel()
				<-release // in flight for ever, as far as the driver can tell
			}
		})
		y := Send(ctx, t, d, Setup{Endpoint: server.URL, Connections: 16, Rate: 1000, Duration: time.Hour, Drain: 50 * time.Millisecond, Workload: numbered{mod: 100}})
		y.Check(t, served.Load())
		if l := y.Step.Ledger; l.InFlight == 0 || l.Scheduled > 100_000 {
			t.Errorf("ledger %+v, want some in flight and no more scheduled than until the cancellation", l)
		}
	})
	t.Run("cancelled after the end of the schedule", func(t *testing.T) { cancelledLate(t, d) })
	t.Run("target killed", func(t *testing.T) { killed(t, d) })
	t.Run("connections refused", func(t *testing.T) {
		y := Send(t.Context(), t, d, Setup{Endpoint: "http://127.0.0.1:1", Connections: 4, Rate: 500, Duration: 500 * time.Millisecond})
		y.Check(t, 0)
		if l := y.Step.Ledger; l.ConnectError != 250 || y.Step.Causes["connection refused"] != 250 {
			t.Errorf("ledger %+v causes %v, want 250 refused connections", l, y.Step.Causes)
		}
	})
	t.Run("ends while behind", func(t *testing.T) {
		server, served := counting(t, func(_ http.ResponseWriter, r *http.Request) { wait(r, 100*time.Millisecond) })
		y := Send(t.Context(), t, d, Setup{Endpoint: server.URL, Connections: 4, Rate: 1000, Duration: time.Second, LastCall: 100 * time.Millisecond})
		y.Check(t, served.Load())
		if l := y.Step.Ledger; l.Scheduled != 1000 || l.Unsent < 900 {
			t.Errorf("ledger %+v, want 1000 scheduled and most of them unsent: 4 connections carry 40/s", l)
		}
	})
	t.Run("timeouts", func(t *testing.T) { timeouts(t, d) })
}

// cancelledLate gives up when all is sent and something is never answered: that is
// waited for no longer than the drain, however long the timeout is.
func cancelledLate(t *testing.T, d driver.Driver) {
	const length = 200 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server, served := counting(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("n") == "3" {
			time.AfterFunc(10*length, cancel)
			<-r.Context().Done()
		}
	})
	y := Send(ctx, t, d, Setup{Endpoint: server.URL, Connections: 16, Rate: 100, Duration: length, Timeout: 20 * time.Second, Drain: 50 * time.Millisecond, LastCall: 5 * length, Workload: numbered{mod: 100}})
	y.Check(t, served.Load())
	if l := y.Step.Ledger; l.InFlight != 1 || l.Scheduled != 20 {
		t.Errorf("ledger %+v, want all of 20 scheduled and the one without an answer in flight", l)
	}
}

// timeouts are samples of which only the beginning is known.
func timeouts(t *testing.T, d driver.Driver) {
	server, served := counting(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("n") == "0" {
			<-r.Context().Done()
		}
	})
	y := Send(t.Context(), t, d, Setup{Endpoint: server.URL, Connections: 32, Rate: 100, Duration: time.Second, Timeout: 500 * time.Millisecond, Workload: numbered{mod: 10}})
	y.Check(t, served.Load())
	for _, o := range y.Outcomes {
		if o.Index%10 != 0 {
			continue
		}
		// By the response: the bound begins with the dispatch, and until the request is
		// sent a connection has to be made.
		if o.Fate != results.Timeout || time.Duration(o.Response()) < 499*time.Millisecond {
			t.Errorf("op %d, which is never answered, ended as %v after %v: want a timeout, a censored sample, of at least 500 ms", o.Index, o.Fate, time.Duration(o.Response()))
		}
	}
}

// killed stops the target in the middle: what was in flight breaks, what comes
// later is refused.
func killed(t *testing.T, d driver.Driver) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var served atomic.Int64
	var server *http.Server
	dead := make(chan struct{})
	server = &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		switch n := served.Add(1); {
		case n == 300:
			_ = server.Close()
			close(dead)
		case n > 290:
			wait(r, time.Minute)
		}
	})}
	go func() { _ = server.Serve(listener) }()
	y := Send(t.Context(), t, d, Setup{Endpoint: "http://" + listener.Addr().String(), Connections: 32, Rate: 1000, Duration: time.Second})
	<-dead
	y.Check(t, served.Load())
	if l := y.Step.Ledger; l.TransportError == 0 || l.ConnectError == 0 || l.OK < 290 {
		t.Errorf("ledger %+v, want broken and refused connections after 300 requests", l)
	}
	if len(y.Step.Outages) != 1 || y.Step.Outages[0].Failed != y.Step.Ledger.Errors() {
		t.Errorf("outages %+v, want one with all %d failures", y.Step.Outages, y.Step.Ledger.Errors())
	}
}

// requests checks that what arrives is what the workload asked for.
func requests(t *testing.T, d driver.Driver) {
	body := []byte("the body of the request")
	server, served := counting(t, func(w http.ResponseWriter, r *http.Request) {
		got, _ := io.ReadAll(r.Body)
		if string(got) != string(body) || r.Method != http.MethodPut || r.URL.RequestURI() != "/a/b?c=d" || r.Header.Get("X-Test") != "yes" {
			http.Error(w, "not what was asked for", http.StatusBadRequest)
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
		_, _ = w.Write(make([]byte, 100_000))
	})
	workload, err := workloads.Single(http.MethodPut, "/a/b?c=d", map[string]string{"X-Test": "yes"}, body)
	if err != nil {
		t.Fatal(err)
	}
	y := Send(t.Context(), t, d, Setup{Endpoint: server.URL, Connections: 8, Rate: 200, Duration: time.Second, Workload: workload})
	y.Check(t, served.Load())
	if y.Step.Ledger.OK != 200 {
		t.Fatalf("ledger %+v causes %v, want 200 successes", y.Step.Ledger, y.Step.Causes)
	}
	if o := y.Outcomes[0]; o.Version != 42 || !o.Cached || o.BytesIn != 100_000 || o.BytesOut != int64(len(body)) {
		t.Errorf("outcome %+v, want version 42 from a cache, 100000 bytes in, %d out", o, len(body))
	}
}

// numbered is a workload whose ops carry n modulo mod.
type numbered struct{ mod uint64 }

func (numbered) Name() string { return "numbered" }
func (numbered) Users() int   { return 0 }
func (w numbered) Op(n uint64) workloads.Op {
	return workloads.Op{Index: n, Class: "get", Method: http.MethodGet, Path: "/?n=" + strconv.FormatUint(n%w.mod, 10), User: -1}
}

// wait holds a request for that long, or until its client has gone.
func wait(r *http.Request, d time.Duration) {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-r.Context().Done():
	}
}
