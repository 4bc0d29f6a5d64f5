package drivertest

import (
	"fmt"
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// testSessions checks that users keep their cookies. A server that forgets all sessions
// must cause lost sessions, not errors, and exactly one new login per user.
func testSessions(t *testing.T, d driver.Driver) {
	const users = 10
	var mu sync.Mutex
	known := map[string]bool{}
	logins, forgotten := 0, false
	server, served := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		defer mu.Unlock()
		if r.URL.Path == "/login" {
			logins++
			token := fmt.Sprintf("token-%d", logins)
			known[token] = true
			http.SetCookie(w, &http.Cookie{Name: "session", Value: token})
			http.SetCookie(w, &http.Cookie{Name: "lb", Value: "web-1"})
			return
		}
		if r.URL.Query().Get("n") == "500" && !forgotten {
			forgotten = true
			clear(known)
		}
		session, err := r.Cookie("session")
		affinity, affinityErr := r.Cookie("lb")
		if err != nil || affinityErr != nil || !known[session.Value] || affinity.Value != "web-1" {
			w.WriteHeader(http.StatusUnauthorized)
		}
	})
	clients := makeClients(t, server.URL, driver.ClientConfig{Connections: 8})
	workload := shopping{numbered{mod: 1_000_000}, users}
	if err := clients.LogIn(t.Context(), workload, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	mu.Lock()
	before := served.Load()
	if logins != users {
		t.Errorf("%d logins for %d users", logins, users)
	}
	mu.Unlock()
	m := sendWith(t.Context(), t, d, clients, setup{workload: workload, rate: 1000, duration: time.Second})
	m.check(t, served.Load()-before)
	l := m.step.Ledger
	if l.SessionLost < users || l.SessionLost != l.HTTPError || l.Errors() != 0 {
		t.Errorf("ledger %+v, want every 401 to be a lost session and none an error", l)
	}
	if again := m.step.Ops["login"].Count; again != users || l.Scheduled != 1000+users {
		t.Errorf("%d new logins and %d scheduled ops: want one new login for each of %d users", again, l.Scheduled, users)
	}
	for _, o := range m.outcomes {
		if o.Class == "login" && o.Fate != results.OK {
			t.Errorf("a login ended as %v: %s", o.Fate, o.Error)
		}
	}
}

// shopping is a numbered workload whose users have sessions.
type shopping struct {
	numbered
	users int
}

func (w shopping) Users() int { return w.users }
func (w shopping) Op(n uint64) workloads.Op {
	op := w.numbered.Op(n)
	op.User = int(n) % w.users
	return op
}

func (w shopping) LoginOp(user int) workloads.Op {
	return workloads.Op{Class: "login", Write: true, Method: http.MethodPost, Path: "/login", User: user}
}

// testCookies checks that a user sends exactly the cookies that a browser would send (RFC 6265).
func testCookies(t *testing.T, d driver.Driver) {
	var mu sync.Mutex
	var sent []string
	server, _ := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/login" {
			for _, cookie := range []string{
				"keep=1; Path=/", "past=1; Path=/; Expires=Thu, 01 Jan 2015 00:00:00 GMT", "over=1; Path=/; Max-Age=0",
				"admin=1; Path=/admin", "other=1; Path=/; Domain=other.example", "sid=7; Path=/",
			} {
				w.Header().Add("Set-Cookie", cookie)
			}
			return
		}
		mu.Lock()
		defer mu.Unlock()
		sent = append(sent, r.Header.Get("Cookie"))
		// As a logout does.
		w.Header().Add("Set-Cookie", "sid=; Path=/; Expires=Thu, 01 Jan 1970 00:00:00 GMT")
	})
	clients := makeClients(t, server.URL, driver.ClientConfig{Connections: 1})
	workload := shopping{numbered{mod: 10}, 1}
	if err := clients.LogIn(t.Context(), workload, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	m := sendWith(t.Context(), t, d, clients, setup{workload: workload, rate: 10, duration: time.Second / 5})
	m.check(t, -1)
	mu.Lock()
	defer mu.Unlock()
	if diff := cmp.Diff([]string{"keep=1; sid=7", "keep=1"}, sent); diff != "" {
		t.Errorf("cookies (-want +got)\n%s", diff)
	}
}
