package drivertest

import (
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
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

// sourcePerUser checks that each user has the same source address in all requests of several runs, also when the target
// or the client closes connections, and when a request times out. The number of connections stays within its limit.
func sourcePerUser(t *testing.T, d driver.Driver) {
	var mu sync.Mutex
	seen, requests := map[string]map[string]bool{}, 0
	open, most := 0, 0
	server, served := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		user := r.FormValue("user")
		if seen[user] == nil {
			seen[user] = map[string]bool{}
		}
		host, _, _ := net.SplitHostPort(r.RemoteAddr)
		seen[user][host] = true
		requests++
		n := requests
		forget := r.URL.Path == "/" && n%50 == 0
		mu.Unlock()
		switch {
		case n%17 == 0:
			w.Header().Set("Connection", "close")
		case n%113 == 0: // longer than the timeout
			delayed(time.Minute)(w, r)
		case forget:
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		mu.Lock()
		defer mu.Unlock()
		switch state {
		case http.StateNew:
			open++
			most = max(most, open)
		case http.StateClosed, http.StateHijacked:
			open--
		}
	}
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
		if c := m.report.Connected; c == 0 || c > m.step.Ledger.Sent {
			t.Errorf("%d connections for %d requests: want some, and at most one each", c, m.step.Ledger.Sent)
		}
		if first == 2 && m.step.Ops["login"].Count == 0 {
			t.Error("no user logged in again")
		}
	}
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff(want, seen); diff != "" {
		t.Errorf("source addresses by user (-want +got)\n%s", diff)
	}
	// The target may see the end of a connection after the begin of the next one.
	if most > 2*config.Connections {
		t.Errorf("%d connections at the same time: want about %d", most, config.Connections)
	}
}
