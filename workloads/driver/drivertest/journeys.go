package drivertest

import (
	"context"
	"fmt"
	"net/http"
	"slices"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/driver/freezer"
)

// testJourneys checks workloads whose users think between their ops.
func testJourneys(t *testing.T, d driver.Driver) {
	runParallel(t, d,
		test{"think times", thinkTimes},
		test{"a slow target changes only times", slowTarget},
		test{"a frozen target", frozenTarget},
		test{"cancelled", journeysCancelled},
		test{"nothing connects", journeysRefused},
		test{"each journey has its session", journeySessions},
		test{"a failed login ends its journey", failedLogins},
		test{"a lost session is renewed", journeyLosesSession},
	)
}

// A journey of browsing has journeyOps ops.
const (
	journeyOps = 4
	wanderers  = 3
)

// browsing is a workload of journeys with equal lengths and think times. If it has sessions, the first op of a journey
// logs in and the last one logs out.
type browsing struct {
	think    time.Duration
	sessions bool
}

func (browsing) Name() string { return "browsing" }
func (browsing) Users() int   { return wanderers }

func (w browsing) Op(n uint64) workloads.Op {
	journey, step := n/journeyOps, n%journeyOps
	op := workloads.Op{
		Index: n, Class: "get", Method: http.MethodGet, Path: fmt.Sprintf("/%d/%d", journey, step),
		User: int(journey % wanderers),
	}
	if w.sessions {
		op.Login, op.Logout = step == 0, step == journeyOps-1
	}
	switch {
	case op.Login:
		op.Class = "enter"
	case op.Logout:
		op.Class = "leave"
	}
	return op
}

func (w browsing) LoginOp(user int) workloads.Op {
	return workloads.Op{Class: "login", Method: http.MethodPost, Path: "/login", User: user}
}

func (browsing) Journey(n uint64) (first uint64, ops int) { return n * journeyOps, journeyOps }
func (w browsing) Think(uint64) time.Duration             { return w.think }
func (w browsing) Shape() (ops float64, longest time.Duration) {
	return journeyOps, (journeyOps - 1) * w.think
}

// checkJourneys checks that each op of a journey but the first is due when the previous one is done and its user has
// thought, and that only the beginning and the end of the step cut journeys. It returns the outcomes of each journey.
func (m measurement) checkJourneys(t *testing.T, think time.Duration) map[uint64][]results.Outcome {
	t.Helper()
	journeys := map[uint64][]results.Outcome{}
	for _, o := range m.outcomes {
		if o.Class != "login" {
			journeys[o.Index/journeyOps] = append(journeys[o.Index/journeyOps], o)
		}
	}
	for journey, all := range journeys {
		slices.SortFunc(all, func(a, b results.Outcome) int { return int(a.Index) - int(b.Index) })
		for i, o := range all[1:] {
			previous := all[i]
			if o.Index != previous.Index+1 {
				t.Errorf("journey %d: op %d follows op %d", journey, o.Index, previous.Index)
			}
			if due := previous.Done + int64(think); o.Intended != due && m.step.Ledger.SessionLost == 0 {
				t.Errorf("op %d is due at %v: want %v, the end of the previous op and the think time",
					o.Index, time.Duration(o.Intended), time.Duration(due))
			}
		}
	}
	v := m.report.Journeys
	if v == nil {
		t.Fatal("the report has no journeys")
	}
	if got := v.PlannedOps - v.NotDue + m.step.Ops["login"].Count; got != m.report.Scheduled {
		t.Errorf("journeys %+v: want the planned ops that were due to be the %d scheduled ones", *v, m.report.Scheduled)
	}
	if got := int64(len(journeys)); got != v.Begun+v.Joined {
		t.Errorf("outcomes of %d journeys: want one journey for each of %+v", got, *v)
	}
	return journeys
}

// thinkTimes sends journeys to a target that is slower than its users. A response time does not include the think time
// before the op, nor the response time of an earlier op.
func thinkTimes(t *testing.T, d driver.Driver) {
	const think, slow = 50 * time.Millisecond, 100 * time.Millisecond
	server, served := countingServer(t, delayed(slow))
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 64, rate: 20, duration: 2 * time.Second, workload: browsing{think: think},
	})
	m.check(t, served.Load())
	journeys := m.checkJourneys(t, think)
	if v := m.report.Journeys; v.Begun != 40 || v.Joined != 3 || v.PlannedOps < 160-2*journeyOps || v.NotDue == 0 {
		t.Errorf("journeys %+v: want 40, and the 3 that began within the 150 ms before", *v)
	}
	for _, all := range journeys {
		for _, o := range all {
			if o.Fate != results.OK || o.Response() < int64(slow) {
				t.Errorf("op %d: %v after %v: want a success", o.Index, o.Fate, time.Duration(o.Response()))
			}
		}
	}
}

// delayed answers after a time.
func delayed(by time.Duration) http.HandlerFunc {
	return func(_ http.ResponseWriter, r *http.Request) {
		timer := time.NewTimer(by)
		defer timer.Stop()
		select {
		case <-timer.C:
		case <-r.Context().Done():
		}
	}
}

// slowTarget sends the same journeys to a fast and to a slow target. Both get the same ops, but the slow one gets only
// the first ones of many journeys. The report says how many are missing.
func slowTarget(t *testing.T, d driver.Driver) {
	s := setup{connections: 200, rate: 50, duration: 2 * time.Second, workload: browsing{think: 100 * time.Millisecond}}
	run := func(delay time.Duration) (journeys map[uint64][]results.Outcome, report driver.Report) {
		server, served := countingServer(t, delayed(delay))
		s.endpoint = server.URL
		m := send(t.Context(), t, d, s)
		m.check(t, served.Load())
		return m.checkJourneys(t, 100*time.Millisecond), m.report
	}
	fast, fastReport := run(0)
	slow, slowReport := run(700 * time.Millisecond)
	planned := fastReport.Journeys.PlannedOps
	if slowReport.Journeys.PlannedOps != planned || slowReport.Journeys.Begun != 100 || fastReport.Journeys.Begun != 100 {
		t.Errorf("%+v of the fast target, %+v of the slow one: want the same journeys",
			fastReport.Journeys, slowReport.Journeys)
	}
	// A journey of four ops takes at least 3 s at the slow target, so it gets at most three ops of each in 2 s.
	if missing := slowReport.Journeys.NotDue; missing < planned/4 {
		t.Errorf("%d of %d ops were not due at the slow target: want at least a quarter", missing, planned)
	}
	for journey, all := range slow {
		if all[0].Index != fast[journey][0].Index {
			t.Errorf("journey %d begins with op %d, and with op %d at the fast target",
				journey, all[0].Index, fast[journey][0].Index)
		}
	}
}

// frozenTarget sends journeys to a target that freezes. Journeys begin during the freeze, too. No op that is due then
// is faster than the thaw.
func frozenTarget(t *testing.T, d driver.Driver) {
	const think = 20 * time.Millisecond
	frozen := &freezer.Freezer{Frozen: 500 * time.Millisecond, Period: 3 * time.Second}
	server, served := countingServer(t, frozen.ServeHTTP)
	m := send(t.Context(), t, d, setup{
		endpoint: server.URL, connections: 200, rate: 100, duration: 3 * time.Second, workload: browsing{think: think},
	})
	m.check(t, served.Load())
	m.checkJourneys(t, think)
	log := readLog(t, server.URL)
	begin := time.Duration(log.StartUnixNS-m.report.Start.UnixNano()) + (frozen.Period-frozen.Frozen)/2
	beginning := 0
	for _, o := range m.outcomes {
		left := begin + frozen.Frozen - time.Duration(o.Intended)
		if left <= 0 || left > frozen.Frozen {
			continue
		}
		if o.Index%journeyOps == 0 {
			beginning++
		}
		// The wall clock of the two may have been adjusted in between.
		if response := time.Duration(o.Response()); o.Sent >= int64(begin) && response < left-10*time.Millisecond {
			t.Errorf("op %d took %v, but the target was frozen for %v", o.Index, response, left)
		}
	}
	if beginning < 49 || beginning > 51 {
		t.Errorf("%d journeys began in the half second of the freeze: want 50, as at any other time", beginning)
	}
}

// journeysCancelled cancels a run while users think, wait for answers, and wait for a connection.
func journeysCancelled(t *testing.T, d driver.Driver) {
	const think = 50 * time.Millisecond
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	server, served := countingServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/40/1" {
			cancel()
		}
		delayed(20*time.Millisecond)(w, r)
	})
	m := send(ctx, t, d, setup{
		endpoint: server.URL, connections: 2, rate: 100, duration: time.Hour, drain: 10 * time.Second,
		workload: browsing{think: think},
	})
	m.check(t, served.Load())
	m.checkJourneys(t, think)
	if l := m.step.Ledger; l.Unsent == 0 || l.InFlight != 0 || l.Scheduled > 10_000 {
		t.Errorf("ledger %+v: want some ops unsent, and none that was due after the cancellation", l)
	}
}

// journeysRefused sends journeys to a target that accepts no connection. Its users try on.
func journeysRefused(t *testing.T, d driver.Driver) {
	const think = 10 * time.Millisecond
	m := send(t.Context(), t, d, setup{
		endpoint: "http://127.0.0.1:1", connections: 4, rate: 100, duration: time.Second / 2,
		workload: browsing{think: think},
	})
	m.check(t, 0)
	m.checkJourneys(t, think)
	l, begun := m.step.Ledger, m.report.Journeys.Begun+m.report.Journeys.Joined
	if l.ConnectError != l.Scheduled || l.Scheduled <= begun {
		t.Errorf("ledger %+v: want more refused connections than the %d journeys", l, begun)
	}
}

// rooms is a target with sessions. Each login gets a new token.
type rooms struct {
	mu     sync.Mutex
	tokens map[string]string // token -> "journey" of its login
	next   int
	wrong  []string // requests that should not have come
	refuse func(journey string) bool
	forget func(path string) bool
}

func (s *rooms) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var journey, step string
	if r.URL.Path == "/login" {
		step = "0"
	} else if _, err := fmt.Sscanf(r.URL.Path, "/%1s", &journey); err == nil {
		journey, step = r.URL.Path[1:len(r.URL.Path)-2], r.URL.Path[len(r.URL.Path)-1:]
	}
	cookie, err := r.Cookie("session")
	if s.forget != nil && s.forget(r.URL.Path) {
		clear(s.tokens)
	}
	switch {
	case step == "0" && s.refuse != nil && s.refuse(journey):
		w.WriteHeader(http.StatusServiceUnavailable)
	case step == "0":
		if journey != "" && err == nil {
			s.wrong = append(s.wrong, r.URL.Path+" logs in with a cookie")
		}
		s.next++
		token := strconv.Itoa(s.next)
		s.tokens[token] = journey
		http.SetCookie(w, &http.Cookie{Name: "session", Value: token})
	case err != nil:
		s.wrong = append(s.wrong, r.URL.Path+" without a cookie")
		w.WriteHeader(http.StatusUnauthorized)
	default:
		owner, known := s.tokens[cookie.Value]
		if !known {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		// The sessions of logins before the run, and of those after a lost session, name no journey.
		if owner != "" && owner != journey {
			s.wrong = append(s.wrong, r.URL.Path+" with the session of journey "+owner)
		}
		if step == strconv.Itoa(journeyOps-1) {
			delete(s.tokens, cookie.Value)
		}
	}
}

// send logs the users in and sends journeys.
func (s *rooms) send(t *testing.T, d driver.Driver) measurement {
	t.Helper()
	const think = 30 * time.Millisecond
	s.tokens = map[string]string{}
	server, served := countingServer(t, s.ServeHTTP)
	clients := makeClients(t, server.URL, driver.ClientConfig{Connections: 16})
	w := browsing{think: think, sessions: true}
	if err := clients.LogIn(t.Context(), w, 30*time.Second); err != nil {
		t.Fatal(err)
	}
	before := served.Load()
	m := sendWith(t.Context(), t, d, clients, setup{workload: w, rate: 50, duration: time.Second})
	m.check(t, served.Load()-before)
	m.checkJourneys(t, think)
	if diff := cmp.Diff([]string(nil), s.wrong); diff != "" {
		t.Error(diff)
	}
	return m
}

// journeySessions checks that a journey that logs in has a session of its own: its users have many journeys at the same
// time, and each logs out. Journeys in progress at the begin use the sessions of their users, and leave the logout out.
func journeySessions(t *testing.T, d driver.Driver) {
	m := (&rooms{}).send(t, d)
	v := m.report.Journeys
	if m.step.Ledger.OK != m.report.Scheduled || v.Begun != 50 || v.Joined == 0 {
		t.Errorf("ledger %+v, journeys %+v: want only successes, in 50 journeys and some in progress", m.step.Ledger, *v)
	}
	for _, o := range m.outcomes {
		if o.Class == "leave" && o.Index/journeyOps < uint64(v.Joined) {
			t.Errorf("op %d logs out, but its journey did not log in", o.Index)
		}
	}
	if entered, left := m.step.Ops["enter"].Count, m.step.Ops["leave"].Count; entered != 50 || left == 0 || left > 50 {
		t.Errorf("%d logins and %d logouts: want 50, and at most as many", entered, left)
	}
}

// failedLogins refuses some logins. Nothing else comes from these journeys.
func failedLogins(t *testing.T, d driver.Driver) {
	refused := func(journey string) bool { return len(journey) > 0 && journey[len(journey)-1] == '3' }
	m := (&rooms{refuse: refused}).send(t, d)
	l, v := m.step.Ledger, m.report.Journeys
	if v.GivenUp != 5 || l.HTTPError != 5 || l.SessionLost != 0 || v.NotDue < 4*(journeyOps-1) {
		t.Errorf("ledger %+v, journeys %+v: want 5 journeys without a successful login, and none of their later ops, "+
			"of which the end of the run cuts some", l, *v)
	}
}

// journeyLosesSession makes the target forget all sessions. Each of them is lost, and its journey logs in again and
// goes on.
func journeyLosesSession(t *testing.T, d driver.Driver) {
	m := (&rooms{forget: func(path string) bool { return path == "/10/2" }}).send(t, d)
	l := m.step.Ledger
	if l.SessionLost == 0 || l.SessionLost != l.HTTPError || l.Errors() != 0 {
		t.Errorf("ledger %+v: want lost sessions, and no errors", l)
	}
	// Nobody logs in to log out.
	if again := m.step.Ops["login"].Count; again > l.SessionLost || again == 0 {
		t.Errorf("%d new logins after %d lost sessions", again, l.SessionLost)
	}
	if v := m.report.Journeys; v.GivenUp != 0 {
		t.Errorf("journeys %+v: want none to be given up", *v)
	}
}
