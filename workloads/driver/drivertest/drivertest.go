// Package drivertest is the conformance kit of drivers: what must hold for
// every way of sending load.
//
// It proves the two promises on which every figure rests. The clocks start at
// the intended time: against a server that freezes, the percentiles are those
// that arithmetic gives, however few connections there are. And the ledger
// closes to the op, in every way in which a run can end, and agrees with the
// server's own count.
package drivertest

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"math"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/pace"
)

// Run runs the kit on a driver.
func Run(t *testing.T, d driver.Driver) {
	t.Run("ledger", func(t *testing.T) { ledger(t, d) })
	t.Run("sessions", func(t *testing.T) { sessions(t, d) })
	t.Run("mishaps", func(t *testing.T) { mishaps(t, d) })
	t.Run("requests", func(t *testing.T) { requests(t, d) })
	t.Run("clients", func(t *testing.T) { clients(t, d) })
	t.Run("freeze", func(t *testing.T) { freeze(t, d) })
}

// Tally is what became of a run.
type Tally struct {
	Report   driver.Report
	Step     results.Step
	Outcomes []results.Outcome
}

// Check fails the test unless the ledger closes and, when served is not
// negative, agrees with the server's count.
func (y Tally) Check(t *testing.T, served int64) {
	t.Helper()
	if err := y.Step.Ledger.Check(); err != nil {
		t.Error(err)
	}
	if got := int64(len(y.Outcomes)); got != y.Report.Scheduled {
		t.Errorf("%d outcomes for %d scheduled ops", got, y.Report.Scheduled)
	}
	if served >= 0 {
		if err := y.Step.Ledger.CheckServer(served, 0); err != nil {
			t.Error(err)
		}
	}
	seen := map[uint64]bool{}
	for _, o := range y.Outcomes {
		if o.Class == "login" {
			continue // follows from a lost session and carries its index
		}
		if seen[o.Index] {
			t.Errorf("op %d has two outcomes", o.Index)
		}
		seen[o.Index] = true
		if o.Fate != results.Unsent && o.Lag() < 0 {
			t.Errorf("op %d was dispatched %v before it was due", o.Index, time.Duration(-o.Lag()))
		}
	}
	// Two ops may reach the meter in another order than that of their clocks, and on a
	// busy machine an op may have to wait between the two. (A step allows 3 %.)
	if in, out := float64(y.Report.InFlightNS), float64(y.Report.ServiceNS); math.Abs(in-out) > 0.01*max(in, out) {
		t.Errorf("in flight %v by the meter, %v by the outcomes", time.Duration(in), time.Duration(out))
	}
}

// Setup is what a test of the kit sends.
type Setup struct {
	Endpoint    string
	Connections int
	Workload    workloads.Workload
	Rate        float64
	Duration    time.Duration
	Timeout     time.Duration
	Drain       time.Duration
	// LastCall is that of the plan; 0 = long enough for a machine that holds the client up
	// when the schedule ends.
	LastCall time.Duration
	Watch    func(results.Outcome) // sees each outcome as it comes
}

// Send runs a driver by a constant schedule.
func Send(ctx context.Context, t testing.TB, d driver.Driver, s Setup) Tally {
	t.Helper()
	return SendWith(ctx, t, d, makeClients(t, s.Endpoint, driver.ClientConfig{Connections: s.Connections}), s)
}

// SendWith is Send over clients that exist already.
func SendWith(ctx context.Context, t testing.TB, d driver.Driver, clients *driver.Clients, s Setup) Tally {
	t.Helper()
	y, err := send(ctx, d, clients, s)
	if err != nil {
		t.Fatal(err)
	}
	return y
}

func newClients(endpoint string, config driver.ClientConfig) (c *driver.Clients, err error) {
	if config.Endpoint, err = url.Parse(endpoint); err != nil {
		return nil, err
	}
	config.DialTimeout = 5 * time.Second
	return driver.NewClients(config)
}

func send(ctx context.Context, d driver.Driver, clients *driver.Clients, s Setup) (y Tally, err error) {
	schedule, err := pace.Constant(s.Rate)
	if err != nil {
		return y, err
	}
	if s.Workload == nil {
		if s.Workload, err = workloads.Single(http.MethodGet, "/", nil, nil); err != nil {
			return y, err
		}
	}
	s.Timeout, s.LastCall = cmp.Or(s.Timeout, 10*time.Second), cmp.Or(s.LastCall, 20*time.Second)
	recorder := hdr.New(time.Now(), func(string) int64 { return int64(time.Second) }, nil)
	y.Report, err = d.Run(ctx, clients, driver.Plan{
		Workload: s.Workload, Schedule: schedule, Duration: s.Duration, Timeout: s.Timeout, Drain: s.Drain, LastCall: s.LastCall,
	}, func(o results.Outcome) {
		if s.Watch != nil {
			s.Watch(o)
		}
		y.Outcomes = append(y.Outcomes, o)
		recorder.Record(o)
	})
	if err != nil {
		return y, err
	}
	y.Step = recorder.Finish(y.Report.Scheduled)
	return y, nil
}

// sendForParent drives the parent's server for 4 s and prints the figures.
func sendForParent(d driver.Driver, endpoint string) error {
	clients, err := newClients(endpoint, driver.ClientConfig{Connections: 16})
	if err != nil {
		return err
	}
	defer clients.Close()
	said := false
	y, err := send(context.Background(), d, clients, Setup{Rate: 500, Duration: 4 * time.Second, Watch: func(o results.Outcome) {
		if !said && o.Intended > int64(time.Second) {
			fmt.Println("sending")
			said = true
		}
	}})
	if err != nil {
		return err
	}
	s := y.Step
	figures := pausedFigures{*s.LagNS.Max, *s.ResponseNS.Max, *s.ResponseNS.P90, 0}
	if own := y.Report.OwnLatency; own != nil && own.P90 != nil {
		figures.OwnP90 = *own.P90
	}
	return json.NewEncoder(os.Stdout).Encode(figures)
}

// counting is a server that counts the requests that it has answered.
func counting(t *testing.T, handler http.HandlerFunc) (*httptest.Server, *atomic.Int64) {
	var served atomic.Int64
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Counted on arrival: what the handler then kills has been served, too.
		served.Add(1)
		handler(w, r)
	}))
	t.Cleanup(server.Close)
	return server, &served
}
