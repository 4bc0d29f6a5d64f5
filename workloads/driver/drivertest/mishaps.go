package drivertest

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// mishaps are what goes wrong on the way and must neither be hidden nor blamed
// on somebody else.
func mishaps(t *testing.T, d driver.Driver) {
	t.Run("an answer broken off", func(t *testing.T) { brokenOff(t, d) })
	t.Run("a login that fails once", func(t *testing.T) { failedLogin(t, d) })
	t.Run("a sink that stalls", func(t *testing.T) { stalledSink(t, d) })
	t.Run("a slow line over a connection that was closed", func(t *testing.T) { slowAgain(t, d) })
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
	clients := makeClients(t, server.URL, driver.ClientConfig{Connections: 1})
	workload := shopping{numbered{mod: 10}, 1}
	if err := clients.LogIn(t.Context(), workload, 30*time.Second); err != nil {
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

// stalledSink takes no outcome for longer than the buffers last, until nothing is sent any
// more. That is the client's own lateness and no slowness of the target.
func stalledSink(t *testing.T, d driver.Driver) {
	const still = 600 * time.Millisecond
	server, served := counting(t, func(http.ResponseWriter, *http.Request) {})
	stalled := false
	y := Send(t.Context(), t, d, Setup{Endpoint: server.URL, Connections: 4, Rate: 8000, Duration: 2 * time.Second, Watch: func(o results.Outcome) {
		if stalled || o.Intended < int64(200*time.Millisecond) {
			return
		}
		stalled = true
		for before := int64(-1); before != served.Load(); {
			before = served.Load()
			pause := time.NewTimer(still)
			<-pause.C
		}
	}})
	y.Check(t, served.Load())
	if late := *y.Step.LagNS.Max; late < int64(still)/2 {
		t.Errorf("lag max %v, although nobody took an outcome until nothing was sent for %v: want the client to be blamed", time.Duration(late), still)
	}
}

// slowAgain closes each connection in the moment in which the next op gets it,
// before anything of that op has left. The op goes over another connection, and
// what its slow line takes there is no slowness of the target either.
func slowAgain(t *testing.T, d driver.Driver) {
	var ends sync.Map // net.Conn of the server, by the client's address -> *end
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) }))
	server.Config.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			ends.Store(c.RemoteAddr().String(), &end{c.(*net.TCPConn), make(chan struct{})})
		case http.StateClosed:
			if e, found := ends.LoadAndDelete(c.RemoteAddr().String()); found {
				close(e.(*end).closed)
			}
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if e, found := ends.Load(info.Conn.LocalAddr().String()); found && info.Reused {
			e.(*end).cut(t)
		}
	}})
	op := workloads.Op{Class: "upload", Write: true, Method: http.MethodPost, Path: "/", Body: make([]byte, 200), BodyRate: 2000}
	y := Send(ctx, t, d, Setup{Endpoint: server.URL, Connections: 1, Rate: 5, Duration: 2 * time.Second, Workload: listed{op}})
	y.Check(t, -1)
	// The client may have begun to write in the very moment: such an op is lost.
	if l := y.Step.Ledger; l.OK < 2 {
		t.Errorf("ledger %+v, causes %v: want some that went over a second connection", l, y.Step.Causes)
	}
	for _, o := range y.Outcomes {
		if o.Fate == results.OK && o.Paced < int64(80*time.Millisecond) {
			t.Errorf("op %d: service %v, of that paced %v: want the 100ms that its line takes", o.Index, time.Duration(o.Service()), time.Duration(o.Paced))
		}
	}
}

// end is the server's end of a connection.
type end struct {
	conn   *net.TCPConn
	closed chan struct{} // when the client has closed its own
}

// cut ends the connection and waits until the client has found out.
func (e *end) cut(t *testing.T) {
	_ = e.conn.CloseWrite()
	select {
	case <-e.closed:
	case <-time.After(10 * time.Second):
		t.Error("a connection that the server has closed was not closed by the client")
	}
}
