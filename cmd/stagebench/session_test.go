package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// members is a workload of that many users, who ask in turn who they are.
type members int

func (members) Name() string { return "members" }
func (m members) Users() int { return int(m) }
func (m members) Op(n uint64) workloads.Op {
	return workloads.Op{Index: n, Class: "me", Method: http.MethodGet, Path: "/api/me", User: int(n % uint64(m))}
}

// LoginOp implements workloads.Login.
func (m members) LoginOp(user int) workloads.Op {
	return workloads.Op{
		Class: "login", Method: http.MethodPost, Path: "/api/login", User: user,
		Header: map[string]string{"Content-Type": "application/json"},
		Body:   fmt.Appendf(nil, `{"login":%q,"password":%q}`, sut.SeedLogin(user+1), sut.SeedPassword),
	}
}

// loggedIn is the number of users of these tests. Each web host has a hundred.
const loggedIn members = 300

// memberRate is the rate of their requests: each user sends one every 4 s.
const memberRate = 75.0

// bringUpMembers brings stage stateless up without the tiers that sessions do not need, and logs the users in. unit is
// the size of a unit in cores.
func bringUpMembers(t *testing.T, unit float64, engines, own sut.Knobs) *rig {
	t.Helper()
	lean := sut.Knobs{
		"cdn.edges": "0", "cache.hosts": "0", "db.replicas": "0",
		// On a busy machine, a health check of a second may fail. A user whose host is skipped meanwhile is logged out.
		"lb.health_interval": "3",
	}
	r := bringUpSized(t, sut.Stateless, with(with(engines, lean), own), unit)
	r.connect(t, loggedIn, driver.ClientConfig{Connections: 32})
	return r
}

// lostSessions counts the requests of the last step that lost a session, by user.
func (r *rig) lostSessions() map[int]int {
	lost := map[int]int{}
	for _, o := range r.outcomes {
		if o.SessionLost {
			lost[o.User]++
		}
	}
	return lost
}

// noneTwice fails the test if a user lost more than one session.
func noneTwice(t *testing.T, lost map[int]int) {
	t.Helper()
	for user, times := range lost {
		if times > 1 {
			t.Errorf("user %d lost %d sessions", user, times)
		}
	}
}

// killAWebHost kills one of three web hosts while the users ask who they are. At most the requests fail that were in
// flight on it or arrived for it during one health interval.
func (r *rig) killAWebHost(t *testing.T) results.Step {
	t.Helper()
	step, killed := r.kill(t, "web-2", memberRate, 10*time.Second, time.Second)
	interval := ladder.LBOf(r.topology.Knobs).HealthInterval.Seconds()
	allowed := r.inFlight(killed) + int64(memberRate/3*interval)
	t.Logf("%d requests, %d failed of at most %d, %d sessions lost; causes %v; events %v",
		step.Ledger.Sent, failed(step), allowed, step.Ledger.SessionLost, step.Causes, step.Events)
	if failed(step) > allowed {
		t.Errorf("%d requests failed, want at most %d", failed(step), allowed)
	}
	return step
}

// With sessions in the memory of web hosts, a killed host loses its own: a third of all users log in again, once.
func TestAWebHostIsKilledWithItsSessions(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUpMembers(t, roomy, knobs, sut.Knobs{"session.store": "memory"})
			if r.topology.Knobs["lb.sticky"] != "true" {
				t.Errorf("lb.sticky=%s", r.topology.Knobs["lb.sticky"])
			}
			r.killAWebHost(t)
			lost := r.lostSessions()
			if len(lost) < int(loggedIn)/5 || len(lost) > int(loggedIn)/2 {
				t.Errorf("%d of %d users lost their session, want about a third", len(lost), loggedIn)
			}
			noneTwice(t, lost)
		})
	}
}

// With sessions in the memory of web hosts and no stickiness, two thirds of the requests meet a host that does not know
// the session.
func TestSessionsInMemoryNeedStickiness(t *testing.T) {
	t.Parallel()
	r := bringUpMembers(t, roomy, engines()["embedded"], sut.Knobs{"session.store": "memory", "lb.sticky": "false"})
	step := r.killAWebHost(t)
	asked := 0
	for _, o := range r.outcomes {
		if o.Class == "me" && o.Status != 0 {
			asked++
		}
	}
	if share := float64(step.Ledger.SessionLost) / float64(asked); share < 0.45 || share > 0.85 {
		t.Errorf("%.2f of %d requests met a host without the session, want about two thirds", share, asked)
	}
}

// stores returns the knobs that select each shared store of sessions.
func stores() map[string]sut.Knobs {
	return map[string]sut.Knobs{"resp": {"session.store": "resp"}, "sql": {"session.store": "sql"}}
}

// With a shared store, a killed web host loses no session, and nobody is logged out.
func TestAWebHostIsKilledWithoutSessions(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		for store, own := range stores() {
			t.Run(name+"/"+store, func(t *testing.T) {
				t.Parallel()
				r := bringUpMembers(t, roomy, knobs, own)
				if r.topology.Knobs["lb.sticky"] != "false" {
					t.Errorf("lb.sticky=%s", r.topology.Knobs["lb.sticky"])
				}
				r.killAWebHost(t)
				for _, o := range r.outcomes {
					if o.Status == http.StatusUnauthorized {
						t.Fatalf("user %d got 401 at %v", o.User, time.Duration(o.Done))
					}
				}
				r.servesAgain(t, "web-2")
			})
		}
	}
}

// While the store of sessions is down, requests that need a session get 503, never 401. A database has all sessions
// when it is back. A session host has lost them: each user logs in again, once.
func TestTheSessionStoreIsKilled(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		for store, own := range stores() {
			t.Run(name+"/"+store, func(t *testing.T) {
				t.Parallel()
				r := bringUpMembers(t, roomy, knobs, own)
				victim := map[string]string{"resp": "session-1", "sql": "db-1"}[store]
				step, killed := r.kill(t, victim, memberRate, 8*time.Second, time.Second)
				back := serving(step, victim) - r.state(t, victim).ReadyNS // it answers before the harness knows
				t.Logf("killed at %v, back at %v; %d requests, %d lost; causes %v; events %v", time.Duration(killed.began),
					time.Duration(back), step.Ledger.Sent, step.Ledger.SessionLost, step.Causes, step.Events)
				refused := 0
				for _, o := range r.outcomes {
					switch {
					case o.Status == http.StatusServiceUnavailable:
						refused++
					case o.Status == http.StatusUnauthorized && (store == "sql" || o.Done < back):
						t.Errorf("user %d got 401 at %v", o.User, time.Duration(o.Done))
					case o.Fate.Failed() && o.Fate != results.Unsent && o.Status != http.StatusUnauthorized:
						t.Errorf("user %d: %s %s at %v", o.User, o.Fate, o.Error, time.Duration(o.Done))
					}
				}
				if refused == 0 {
					t.Error("no request got 503 while the store was down")
				}
				lost := r.lostSessions()
				noneTwice(t, lost)
				eventually(t, "a request succeeds", r.recoveredMembers(t))
				r.load(t, memberRate, 5*time.Second, 0, nil) // every user once more
				for user := range r.lostSessions() {
					lost[user]++
				}
				t.Logf("%d users logged in again", len(lost))
				if want := map[string]int{"resp": int(loggedIn), "sql": 0}[store]; len(lost) != want {
					t.Errorf("%d users lost their session, want %d", len(lost), want)
				}
				noneTwice(t, lost)
			})
		}
	}
}

// Sessions move out of the memory of the web hosts under load.
// No user is logged out and no request fails. Afterwards no user needs a certain host: one of them is killed.
func TestSessionsMoveUnderLoad(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		for store := range stores() {
			t.Run(name+"/"+store, func(t *testing.T) {
				t.Parallel()
				r := bringUpMembers(t, smallUnit, knobs, sut.Knobs{"session.store": "memory"})
				var out strings.Builder
				step := r.load(t, memberRate, 8*time.Second, time.Second, func() {
					if err := set(t.Context(), &out, r, "session.store", store); err != nil {
						t.Error(err)
					}
				})
				t.Logf("%s%d requests, causes %v, events %v", out.String(), step.Ledger.Sent, step.Causes, step.Events)
				if failed(step) > 0 || step.Ledger.SessionLost > 0 {
					t.Errorf("%d requests failed, %d sessions were lost, want none", failed(step), step.Ledger.SessionLost)
				}
				want := fmt.Sprintf("session.store is %s after ", store)
				if !strings.HasPrefix(out.String(), want) || !strings.HasSuffix(out.String(), ": 300 sessions moved\n") {
					t.Errorf("output %q", out.String())
				}
				if r.sticks(t) {
					t.Error("the balancer is still sticky")
				}
				r.killAWebHost(t)
				if lost := r.lostSessions(); len(lost) > 0 {
					t.Errorf("%d users lost their session with a web host", len(lost))
				}
				if _, err := r.Set(t.Context(), "session.store", "memory"); err == nil {
					t.Error("sessions moved back into the memory of web hosts")
				}
			})
		}
	}
}

// sticks reports whether the balancer keeps users on a host.
func (r *rig) sticks(t *testing.T) bool {
	t.Helper()
	response := r.admin(t, http.MethodGet, "lb-1", "/status", nil)
	defer func() { _ = response.Body.Close() }() // read only
	var status sut.BalancerStatus
	if err := json.NewDecoder(response.Body).Decode(&status); err != nil {
		t.Fatal(err)
	}
	return status.Sticky
}

// serving returns the time of the first event of a step that says that a killed node serves again; the end of time if
// there is none.
func serving(step results.Step, node string) int64 {
	for _, e := range step.Events {
		if strings.HasPrefix(e.Text, node+": serving") {
			return e.AtNS
		}
	}
	return int64(time.Hour)
}

// recoveredMembers returns a condition: someone who logs in can be looked up.
func (r *rig) recoveredMembers(t *testing.T) func() bool {
	base := r.Endpoints()[0]
	return func() bool {
		login := loggedIn.LoginOp(900)
		response, err := http.Post(base+login.Path, "application/json", strings.NewReader(string(login.Body)))
		if err != nil {
			return false
		}
		_ = response.Body.Close() // only cookies matter
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, base+"/api/me", nil)
		if err != nil {
			return false
		}
		for _, c := range response.Cookies() {
			req.AddCookie(c)
		}
		me, err := http.DefaultClient.Do(req)
		return err == nil && me.Body.Close() == nil && me.StatusCode == http.StatusOK
	}
}
