package drivertest

import (
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads/driver"
)

// mishaps are what goes wrong on the way and must neither be hidden nor blamed
// on somebody else.
func mishaps(t *testing.T, d driver.Driver) {
	t.Run("an answer broken off", func(t *testing.T) { brokenOff(t, d) })
	t.Run("a login that fails once", func(t *testing.T) { failedLogin(t, d) })
	t.Run("a sink that stalls", func(t *testing.T) { stalledSink(t, d) })
}

// brokenOff drops every second request of a connection without an answer. The
// library below would repeat a GET by itself: the server would be asked twice,
// and the failure be hidden.
func brokenOff(t *testing.T, d driver.Driver) {
	server, served := counting(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("n") != "0" {
			return
		}
		conn, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		_ = conn.Close()
	})
	y := Send(t.Context(), t, d, Setup{Endpoint: server.URL, Connections: 1, Rate: 200, Duration: time.Second, Workload: numbered{mod: 2}})
	y.Check(t, served.Load())
	if l := y.Step.Ledger; l.TransportError != 100 || l.OK != 100 || served.Load() != 200 {
		t.Errorf("ledger %+v, the server was asked %d times: want 100 of 200 requests broken, and none sent twice", l, served.Load())
	}
}

// failedLogin refuses the first login after a session was lost. The next op that
// finds the session lost must try again.
func failedLogin(t *testing.T, d driver.Driver) {
	var logins atomic.Int64
	var valid atomic.Bool
	server, served := counting(t, func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path != "/login":
			if !valid.Load() {
				w.WriteHeader(http.StatusUnauthorized)
			}
		case logins.Add(1) == 2:
			w.WriteHeader(http.StatusServiceUnavailable)
		default:
			valid.Store(true)
			http.SetCookie(w, &http.Cookie{Name: "session", Value: "token"})
		}
	})
	clients, err := newClients(server.URL, 1)
	if err != nil {
		t.Fatal(err)
	}
	defer clients.Close()
	workload := shopping{numbered{mod: 10}, 1}
	if err := clients.LogIn(t.Context(), workload, time.Second); err != nil {
		t.Fatal(err)
	}
	valid.Store(false)
	before := served.Load()
	y := SendWith(t.Context(), t, d, clients, Setup{Workload: workload, Rate: 100, Duration: time.Second})
	y.Check(t, served.Load()-before)
	if l := y.Step.Ledger; l.SessionLost != 2 || logins.Load() != 3 {
		t.Errorf("%d ops lost their session and %d logins were made, want 2 and 3: one that failed, one that did not", l.SessionLost, logins.Load())
	}
}

// stalledSink holds the taker of outcomes up for longer than the buffers last. That is the client's
// own lateness and no slowness of the target.
func stalledSink(t *testing.T, d driver.Driver) {
	server, served := counting(t, func(http.ResponseWriter, *http.Request) {})
	stalled := false
	y := Send(t.Context(), t, d, Setup{Endpoint: server.URL, Connections: 4, Rate: 8000, Duration: 3500 * time.Millisecond, Watch: func(o results.Outcome) {
		if !stalled && o.Intended > int64(200*time.Millisecond) {
			stalled = true
			<-time.After(2500 * time.Millisecond)
		}
	}})
	y.Check(t, served.Load())
	if late := *y.Step.LagNS.Max; late < int64(300*time.Millisecond) {
		t.Errorf("lag max %v, although nobody took an outcome for 2.5 s: want the client to be blamed", time.Duration(late))
	}
}
