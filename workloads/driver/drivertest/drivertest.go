// Package drivertest is the conformance kit of drivers. Every driver must pass it.
//
// The kit checks two properties that all figures depend on. Response times start at the
// intended time: the percentiles for a server that freezes equal their exact values, with
// few connections as with many. And the ledger accounts for every op, however the run
// ends, and agrees with the server's own count.
package drivertest

import (
	"cmp"
	"context"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/pace"
)

// Run runs the kit on a driver. The package's TestMain must call Main.
func Run(t *testing.T, d driver.Driver) {
	t.Run("ledger", func(t *testing.T) { testLedger(t, d) })
	t.Run("sessions", func(t *testing.T) { testSessions(t, d) })
	t.Run("journeys", func(t *testing.T) { testJourneys(t, d) })
	t.Run("cookies", func(t *testing.T) { testCookies(t, d) })
	t.Run("answers", func(t *testing.T) { testAnswers(t, d) })
	t.Run("mishaps", func(t *testing.T) { testMishaps(t, d) })
	t.Run("requests", func(t *testing.T) { testRequests(t, d) })
	t.Run("clients", func(t *testing.T) { testClients(t, d) })
	t.Run("freeze", func(t *testing.T) { testFreeze(t, d) })
}

// test is one test of the kit.
type test struct {
	name string
	run  func(t *testing.T, d driver.Driver)
}

// runParallel runs tests at the same time. None of them may have an upper bound on a
// duration, because they delay each other.
func runParallel(t *testing.T, d driver.Driver, tests ...test) {
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, d)
		})
	}
}

// measurement is the result of one run of a driver.
type measurement struct {
	report   driver.Report
	step     results.Step
	outcomes []results.Outcome
}

// check fails the test if the ledger does not add up, if an op does not have exactly one
// outcome, or if the ledger differs from the server's count of requests. Served is that
// count; negative = unknown.
func (m measurement) check(t *testing.T, served int64) {
	t.Helper()
	if err := m.step.Ledger.Check(); err != nil {
		t.Error(err)
	}
	if got := int64(len(m.outcomes)); got != m.report.Scheduled {
		t.Errorf("%d outcomes for %d scheduled ops", got, m.report.Scheduled)
	}
	if served >= 0 {
		if err := m.step.Ledger.CheckServer(served, 0); err != nil {
			t.Error(err)
		}
	}
	seen, serviceNS := map[uint64]bool{}, int64(0)
	for _, o := range m.outcomes {
		if o.Sent >= 0 {
			serviceNS += o.Service()
		}
		if o.Class == "login" {
			continue // a login after a lost session has the index of the op that lost it
		}
		if seen[o.Index] {
			t.Errorf("op %d has two outcomes", o.Index)
		}
		seen[o.Index] = true
		if o.Fate != results.Unsent && o.Lag() < 0 {
			t.Errorf("op %d was dispatched %v before it was due", o.Index, time.Duration(-o.Lag()))
		}
	}
	if in := m.report.InFlightNS; in != serviceNS {
		t.Errorf("ops in flight, summed over time: %v at the transport, %v by the outcomes",
			time.Duration(in), time.Duration(serviceNS))
	}
}

// setup configures one run of a driver.
type setup struct {
	endpoint    string             // used by send
	connections int                // used by send
	workload    workloads.Workload // nil = GET /
	first       uint64             // position of the first op in the workload
	rate        float64            // of a constant schedule, ops per second
	duration    time.Duration
	timeout     time.Duration // 0 = 10 s
	drain       time.Duration
	grace       time.Duration // 0 = 20 s, so that even a very busy machine sends every op
	onOutcome   func(results.Outcome)
}

// send runs a driver with new clients.
func send(ctx context.Context, t *testing.T, d driver.Driver, s setup) measurement {
	t.Helper()
	return sendWith(ctx, t, d, makeClients(t, s.endpoint, driver.ClientConfig{Connections: s.connections}), s)
}

// sendWith runs a driver with the given clients.
func sendWith(ctx context.Context, t *testing.T, d driver.Driver, clients *driver.Clients, s setup) measurement {
	t.Helper()
	m, err := drive(ctx, d, clients, s)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func drive(ctx context.Context, d driver.Driver, clients *driver.Clients, s setup) (m measurement, err error) {
	schedule, err := pace.Constant(s.rate)
	if err != nil {
		return m, err
	}
	if s.workload == nil {
		if s.workload, err = workloads.Single(http.MethodGet, "/", nil, nil); err != nil {
			return m, err
		}
	}
	recorder := hdr.New(time.Now(), func(string) int64 { return int64(time.Second) }, nil)
	m.report, err = d.Run(ctx, clients, driver.Plan{
		Workload: s.workload, First: s.first, Schedule: schedule, Duration: s.duration, Drain: s.drain,
		Timeout: cmp.Or(s.timeout, 10*time.Second), Grace: cmp.Or(s.grace, 20*time.Second),
	}, func(o results.Outcome) {
		if s.onOutcome != nil {
			s.onOutcome(o)
		}
		m.outcomes = append(m.outcomes, o)
		recorder.Record(o)
	})
	if err != nil {
		return m, err
	}
	m.step = recorder.Finish(m.report.Scheduled)
	return m, nil
}

// makeClients returns clients that are closed when the test ends.
func makeClients(t *testing.T, endpoint string, config driver.ClientConfig) *driver.Clients {
	t.Helper()
	clients, err := newClients(endpoint, config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clients.Close)
	return clients
}

func newClients(endpoint string, config driver.ClientConfig) (c *driver.Clients, err error) {
	if config.Endpoint, err = url.Parse(endpoint); err != nil {
		return nil, err
	}
	config.DialTimeout = 5 * time.Second
	return driver.NewClients(config)
}

// countingServer returns a server and its count of requests. A request counts on arrival,
// so that requests whose handler breaks the connection are included.
func countingServer(t *testing.T, handler http.HandlerFunc) (server *httptest.Server, served *atomic.Int64) {
	served = new(atomic.Int64)
	server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		served.Add(1)
		handler(w, r)
	}))
	t.Cleanup(server.Close)
	return server, served
}

// reply answers every request with an empty response.
func reply(http.ResponseWriter, *http.Request) {}
