package drivertest

import (
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// sourceCount is the number of source addresses, and crowd the number of users who share them.
const (
	sourceCount = 5
	crowd       = 12
)

// crowded is a workload whose requests name their users.
type crowded struct{}

func (crowded) Name() string { return "crowded" }
func (crowded) Users() int   { return crowd }
func (crowded) Op(n uint64) workloads.Op {
	user := workloads.Below(workloads.Draw(1, n, 0), crowd)
	return workloads.Op{
		Index: n, Class: "get", Method: http.MethodGet, Path: "/?user=" + strconv.Itoa(user), User: user,
	}
}

func (crowded) LoginOp(user int) workloads.Op {
	return workloads.Op{
		Class: "login", Method: http.MethodPost, Path: "/login?user=" + strconv.Itoa(user), User: user,
	}
}

// lobby is a target that knows the addresses of users, and counts its connections. It closes connections, answers late
// and forgets sessions.
type lobby struct {
	closed chan struct{} // gets a value when a connection ends

	mu       sync.Mutex
	seen     map[string]map[string]bool // user -> addresses
	requests int
	open     int // connections
}

func (l *lobby) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch n := l.note(r); {
	case n%17 == 0:
		w.Header().Set("Connection", "close")
	case n%113 == 0: // longer than the timeout
		delayed(time.Minute)(w, r)
	case n%50 == 0 && r.URL.Path == "/":
		w.WriteHeader(http.StatusUnauthorized)
	}
}

// note stores the address of a request's user, and returns the number of the request.
func (l *lobby) note(r *http.Request) (n int) {
	l.mu.Lock()
	defer l.mu.Unlock()
	user := r.FormValue("user")
	if l.seen[user] == nil {
		l.seen[user] = map[string]bool{}
	}
	host, _, _ := net.SplitHostPort(r.RemoteAddr)
	l.seen[user][host] = true
	l.requests++
	return l.requests
}

// count counts the open connections.
func (l *lobby) count(_ net.Conn, state http.ConnState) {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch state {
	case http.StateNew:
		l.open++
	case http.StateClosed, http.StateHijacked:
		l.open--
		select {
		case l.closed <- struct{}{}:
		default:
		}
	}
}

// awaitOpen waits until at most limit connections are open: a target may see the end of a connection late.
func (l *lobby) awaitOpen(t *testing.T, limit int) {
	deadline := time.After(time.Minute)
	for {
		l.mu.Lock()
		open := l.open
		l.mu.Unlock()
		if open <= limit {
			return
		}
		select {
		case <-l.closed:
		case <-deadline:
			t.Errorf("%d connections were left open: want at most %d", open, limit)
			return
		}
	}
}

// sourcePerUser checks that each user has the same source address in all requests of several runs, also when the target
// or the client closes connections, and when a request times out. No connection is left behind.
func sourcePerUser(t *testing.T, d driver.Driver) {
	target := &lobby{closed: make(chan struct{}, 1), seen: map[string]map[string]bool{}}
	var served atomic.Int64
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		target.ServeHTTP(w, r)
	}))
	server.Config.ConnState = target.count
	server.Start()
	t.Cleanup(server.Close)
	config := driver.ClientConfig{Connections: 4, SourcePerUser: true, ConnectionLife: 100 * time.Millisecond}
	want := map[string]map[string]bool{}
	for i := range sourceCount {
		config.Sources = append(config.Sources, netip.AddrFrom4([4]byte{127, 0, 3, byte(1 + i)}))
	}
	for user := range crowd {
		want[strconv.Itoa(user)] = map[string]bool{config.Sources[user%sourceCount].String(): true}
	}
	clients := makeClients(t, server.URL, config)
	if err := clients.LogIn(t.Context(), crowded{}, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	for first := range uint64(3) {
		before := served.Load()
		m := sendWith(t.Context(), t, d, clients, setup{
			workload: crowded{}, rate: 200, duration: time.Second, timeout: 300 * time.Millisecond, first: first * 1000,
		})
		m.check(t, served.Load()-before)
		if made, moved := m.report.Connected, m.report.Switched; made == 0 || moved == 0 {
			t.Errorf("%d connections, and %d changes of the address: want some", made, moved)
		}
		if l := m.step.Ledger; l.Timeout == 0 || l.SessionLost == 0 || m.step.Ops["login"].Count == 0 {
			t.Errorf("ledger %+v: want timeouts, lost sessions and new logins", l)
		}
	}
	target.awaitOpen(t, config.Connections)
	target.mu.Lock()
	defer target.mu.Unlock()
	if diff := cmp.Diff(want, target.seen); diff != "" {
		t.Errorf("source addresses by user (-want +got)\n%s", diff)
	}
}
