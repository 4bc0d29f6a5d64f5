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

// testMishaps causes failures that a driver must not hide and must not blame on the wrong
// component.
func testMishaps(t *testing.T, d driver.Driver) {
	runParallel(t, d,
		test{"broken response", brokenResponse},
		test{"failed login", failedLogin},
		test{"stalled sink", stalledSink},
		test{"slow upload over a closed connection", slowUploadRetried},
	)
}

// brokenResponse closes the connection at every second request, without a response. The
// transport of net/http would repeat a GET on its own: the server would get it twice, and
// the failure would be hidden.
func brokenResponse(t *testing.T, d driver.Driver) {
	server, served := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
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
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 1, rate: 400, duration: time.Second / 2, workload: numbered{mod: 2},
	})
	m.check(t, served.Load())
	if l := m.step.Ledger; l.TransportError != 100 || l.OK != 100 || served.Load() != 200 {
		t.Errorf("ledger %+v, the server got %d requests: want 100 of 200 broken and none sent twice", l, served.Load())
	}
}

// failedLogin refuses the first login after a session was lost. The next op that finds
// the session lost must log in again.
func failedLogin(t *testing.T, d driver.Driver) {
	var logins atomic.Int64
	var valid atomic.Bool
	server, served := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
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
	m := sendWith(t.Context(), t, d, clients, setup{workload: workload, rate: 200, duration: time.Second / 2})
	m.check(t, served.Load()-before)
	if l := m.step.Ledger; l.SessionLost != 2 || logins.Load() != 3 {
		t.Errorf("%d ops lost their session and %d logins were sent: want 2 and 3, of which the second login failed",
			l.SessionLost, logins.Load())
	}
}

// stalledSink blocks the sink until its buffers are full and the driver sends nothing any
// more. The delay must count as lag of the client, not as response time of the target.
func stalledSink(t *testing.T, d driver.Driver) {
	const idle = 600 * time.Millisecond
	arrived := make(chan struct{}, 1)
	server, served := countingServer(t, func(http.ResponseWriter, *http.Request) {
		select {
		case arrived <- struct{}{}:
		default:
		}
	})
	stalled := false
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 4, rate: 8000, duration: 750 * time.Millisecond,
		onOutcome: func(o results.Outcome) {
			if stalled || o.Intended < int64(50*time.Millisecond) {
				return
			}
			for !stalled {
				select {
				case <-arrived:
				case <-time.After(idle):
					stalled = true
				}
			}
		},
	})
	m.check(t, served.Load())
	if lag := time.Duration(*m.step.LagNS.Max); lag < idle/2 {
		t.Errorf("lag max %v: the sink blocked until no request had arrived for %v: want that delay as lag", lag, idle)
	}
}

// slowUploadRetried closes each connection when the next op takes it, before the op has
// sent a byte. The op then uses a new connection. Its slow upload there must not count as
// response time of the target.
func slowUploadRetried(t *testing.T, d driver.Driver) {
	var connections sync.Map // address of the client (string) -> *serverConn
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
	}))
	server.Config.ConnState = func(c net.Conn, state http.ConnState) {
		switch state {
		case http.StateNew:
			connections.Store(c.RemoteAddr().String(), &serverConn{c.(*net.TCPConn), make(chan struct{})})
		case http.StateClosed:
			if conn, found := connections.LoadAndDelete(c.RemoteAddr().String()); found {
				close(conn.(*serverConn).closed)
			}
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{GotConn: func(info httptrace.GotConnInfo) {
		if conn, found := connections.Load(info.Conn.LocalAddr().String()); found && info.Reused {
			conn.(*serverConn).close(t)
		}
	}})
	op := workloads.Op{
		Class: "upload", Write: true, Method: http.MethodPost, Path: "/", Body: make([]byte, 200), BodyRate: 2000,
	}
	m := send(ctx, t, d, setup{
		endpoint: server.URL, connections: 1, rate: 8, duration: 1250 * time.Millisecond, workload: listed{op},
	})
	m.check(t, -1)
	// An op fails if its first byte was written at the moment of the close.
	if l := m.step.Ledger; l.OK < 2 {
		t.Errorf("ledger %+v, causes %v: want at least 2 ops that used a second connection", l, m.step.Causes)
	}
	for _, o := range m.outcomes {
		if o.Fate == results.OK && o.Paced < int64(80*time.Millisecond) {
			t.Errorf("op %d: service %v, of that paced %v: want about 100 ms paced for the upload",
				o.Index, time.Duration(o.Service()), time.Duration(o.Paced))
		}
	}
}

// serverConn is the server's side of a connection.
type serverConn struct {
	conn   *net.TCPConn
	closed chan struct{} // closed when the client has closed its side
}

// close ends the connection and waits until the client has noticed it.
func (c *serverConn) close(t *testing.T) {
	_ = c.conn.CloseWrite()
	select {
	case <-c.closed:
	case <-time.After(10 * time.Second):
		t.Error("the server closed a connection, but the client kept it open for 10 s")
	}
}
