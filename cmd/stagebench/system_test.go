package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/local"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
	"github.com/stagebench/stagebench/workloads/pace"
)

// rig is a system that is up, with the means to load it.
type rig struct {
	*local.System
	topology sut.Topology
	stepper  *cell.Stepper
	outcomes []results.Outcome // of the last step
}

// roomy is a unit that is large enough, in cores, for the race detector, which
// slows nodes down tenfold: these tests are about what is right, not how fast.
const roomy = 0.3

// silence is how long a database may not answer in these tests: a machine that is busy
// with other things causes no failover. One that is killed refuses, and is not silent.
const silence = 5 * time.Second

// silent is a Progress that nobody watches.
type silent struct{}

func (silent) Step(string, float64)           {}
func (silent) Sample(*int64, *int64, float64) {}

// templates are shared by all tests of this binary, so that each is built once.
func templates() string { return os.Getenv(templatesVariable) }

// bringUp brings a stage up on roomy hosts, ready for a shipped workload.
func bringUp(t *testing.T, stage sut.Stage, knobs sut.Knobs, workload string) *rig {
	t.Helper()
	r := bringUpSized(t, stage, knobs, roomy)
	r.connect(t, shipped(t, workload), driver.ClientConfig{Connections: 32})
	return r
}

// adminURL is where a node answers its operators.
func (r *rig) adminURL(t *testing.T, node string) string {
	t.Helper()
	for _, n := range r.Status() {
		if n.Node == node {
			return "http://" + n.Admin
		}
	}
	t.Fatalf("there is no node %s", node)
	return ""
}

// smallData is the data set of all tests here.
func smallData() sut.Data { return sut.Data{Size: "small", Seed: 1} }

// photoPath and thumbPath are where the seeded photo with that index, from 1, is.
func photoPath(index int) string { return fmt.Sprintf("/api/photos/%d", seededPhoto(index)) }
func thumbPath(index int) string { return fmt.Sprintf("/img/%d/thumb.jpg", seededPhoto(index)) }

func seededPhoto(index int) photos.ID {
	counts, _ := smallData().Counts()
	return photos.PhotoID(index, counts)
}

// shipped is a workload that we ship.
func shipped(t *testing.T, name string) workloads.Workload {
	t.Helper()
	l, err := load.Maker{Data: smallData(), Service: true}.Make(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Workload
}

// bringUpSized brings a stage up with a unit of that many cores.
func bringUpSized(t *testing.T, stage sut.Stage, knobs sut.Knobs, unit float64) *rig {
	t.Helper()
	skipWithoutEngines(t, knobs)
	data := smallData()
	up, err := newBringer(data, slog.New(slog.NewTextHandler(io.Discard, nil)), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{}
	if r.topology, err = ladder.Build(stage, knobs, unit); err != nil {
		t.Fatal(err)
	}
	up.TemplateDir, up.Silence = templates(), silence
	if r.System, err = up.up(t.Context(), r.topology, t.TempDir()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := r.Down(context.Background()); err != nil {
			t.Error(err)
		}
		if err := up.Budgets.Close(); err != nil {
			t.Error(err)
		}
	})
	t.Logf("%s up after %v, hosts: %s", stage, r.BringUp().Round(time.Millisecond), up.Budgets.Describe())
	return r
}

func skipWithoutEngines(t *testing.T, knobs sut.Knobs) {
	t.Helper()
	for _, tier := range ladder.Tiers() {
		if err := node.Installed(sut.Engine(knobs[string(tier.Role)+".engine"])); err != nil {
			t.Skip(err)
		}
	}
}

// connect makes new clients for a workload, in the place of those before.
func (r *rig) connect(t *testing.T, workload workloads.Workload, config driver.ClientConfig) {
	t.Helper()
	endpoint, addresses, err := cell.Endpoint(r.Endpoints())
	if err != nil {
		t.Fatal(err)
	}
	config.Endpoint, config.Addresses, config.Sources, config.DialTimeout = endpoint, addresses, cell.Sources(endpoint, 1), 5*time.Second
	clients, err := driver.NewClients(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clients.Close)
	if err := clients.LogIn(t.Context(), workload, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	r.stepper = &cell.Stepper{
		Driver: vegeta.Driver{}, Clients: clients, Workload: workload, SLO: results.DefaultSLO(), Timeout: 5 * time.Second,
		Drain: time.Second, Progress: silent{}, Target: r.System, ClientCPU: float64(runtime.NumCPU()),
		Nodes:   func(context.Context) ([]targets.NodeStatus, error) { return r.Status(), nil },
		Figures: ladder.Figures(),
		Also:    func(o results.Outcome) { r.outcomes = append(r.outcomes, o) },
	}
}

// failed counts the requests that failed, without those that were not sent in time:
// a system that is slow for want of a faster machine is not what is tested. A step
// of which nothing came through has failed whole.
func failed(s results.Step) int64 {
	if s.Ledger.OK == 0 {
		return s.Ledger.Scheduled
	}
	return s.Ledger.Errors() - s.Ledger.Unsent
}

// failures are the outcomes of the last step that failed returns the number of.
func (r *rig) failures() []results.Outcome {
	return slices.DeleteFunc(slices.Clone(r.outcomes), func(o results.Outcome) bool {
		return !o.Fate.Failed() || o.Fate == results.Unsent || o.SessionLost
	})
}

// killing is when a node was killed, on the clock of a step: it lived until it began,
// and was dead when it was over.
type killing struct{ began, over int64 }

// kill offers a constant rate and kills a node, or all of a host, in the middle.
func (r *rig) kill(t *testing.T, name string, rate float64, d, at time.Duration) (results.Step, killing) {
	t.Helper()
	var over time.Time
	step := r.load(t, rate, d, at, func() {
		if err := r.Kill(name); err != nil {
			t.Error(err)
		}
		over = time.Now()
	})
	const text = "killed on request"
	for _, said := range r.Events() {
		for _, e := range step.Events {
			if said.Text == text && e.Text == said.Node+": "+text {
				return step, killing{e.AtNS, e.AtNS + over.UnixNano() - said.UnixNS}
			}
		}
	}
	t.Fatalf("the kill of %s is not among the events of the step: %+v", name, step.Events)
	return step, killing{}
}

// inFlight counts the requests of the last step that were in flight at a kill, or were
// sent before anybody could see it.
func (r *rig) inFlight(k killing) (n int64) {
	for _, o := range r.outcomes {
		if o.Sent >= 0 && o.Sent <= k.over+int64(50*time.Millisecond) && o.Done >= k.began {
			n++
		}
	}
	return n
}

// load offers a constant rate and, in the middle, does something.
func (r *rig) load(t *testing.T, rate float64, d, at time.Duration, act func()) results.Step {
	t.Helper()
	r.outcomes = nil
	schedule, err := pace.Constant(rate)
	if err != nil {
		t.Fatal(err)
	}
	acted := make(chan struct{})
	if act == nil {
		close(acted)
	} else {
		timer := time.AfterFunc(at, func() { defer close(acted); act() })
		defer timer.Stop()
	}
	step, err := r.stepper.Step(t.Context(), "attack", rate, schedule, d)
	if err != nil {
		t.Fatal(err)
	}
	<-acted
	if err := step.Ledger.Check(); err != nil {
		t.Error(err)
	}
	return step
}

// engines are the two ways of running the balancer and the database.
func engines() map[string]sut.Knobs {
	return map[string]sut.Knobs{
		"embedded": {"db.engine": "sqlite", "lb.engine": "balance"},
		"native":   {"db.engine": "postgres", "lb.engine": "haproxy", "cache.engine": "redis"},
	}
}

// The server's own count and the ledger agree to the request, at every stage.
func TestLedgerAgreesWithTheServer(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		for _, rung := range ladder.Rungs() {
			stage := rung.Stage
			t.Run(name+"/"+string(stage), func(t *testing.T) {
				t.Parallel()
				r := bringUp(t, stage, knobs, "write-heavy")
				step := r.load(t, 60, time.Second, 0, nil)
				if step.ServerCount == nil || *step.ServerCount != step.Ledger.Sent {
					t.Errorf("the server counted %v, the client sent %d", step.ServerCount, step.Ledger.Sent)
				}
				if failed(step) > 0 {
					t.Errorf("ledger %+v causes %v: want nothing but successes", step.Ledger, step.Causes)
				}
			})
		}
	}
}

// Killing one of three web hosts costs no more than what was in flight on it and
// what arrived for it during one health interval; it comes back and gets
// traffic.
func TestAWebHostIsKilled(t *testing.T) {
	t.Parallel()
	const rate = 120.0
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			r := bringUp(t, sut.LB, knobs, "read-heavy")
			step, killed := r.kill(t, "web-2", rate, 5*time.Second, time.Second)
			inFlight := r.inFlight(killed)
			interval := ladder.LBOf(r.topology.Knobs).HealthInterval.Seconds()
			allowed := inFlight + int64(rate/3*interval)
			t.Logf("%d failed, %d allowed (%d in flight + %.0f in one interval), %d sessions lost; causes %v; events %v",
				failed(step), allowed, inFlight, rate/3*interval, step.Ledger.SessionLost, step.Causes, step.Events)
			if failed(step) > allowed {
				t.Errorf("%d failed requests, at most %d allowed", failed(step), allowed)
			}
			if step.Ledger.SessionLost == 0 {
				t.Error("no session was lost, although they are in the memory of a host that was killed")
			}
			r.servesAgain(t, "web-2")
		})
	}
}

// servesAgain waits until requests through the frontend reach a node.
func (r *rig) servesAgain(t *testing.T, node string) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for ; time.Now().Before(deadline); pause() {
		response, err := http.Get(r.Endpoints()[0] + photoPath(1))
		if err != nil {
			continue
		}
		_ = response.Body.Close()
		if response.Header.Get("X-Served-By") == node && response.StatusCode == http.StatusOK {
			return
		}
	}
	t.Errorf("%s gets no traffic 20 s after its death: %+v", node, r.Status())
}

// Killing the only host shows as one outage with its length, and the system
// recovers.
func TestTheOnlyHostIsKilled(t *testing.T) {
	t.Parallel()
	r := bringUp(t, sut.Single, nil, "read-heavy")
	step, killed := r.kill(t, "host-1", 60, 5*time.Second, time.Second)
	t.Logf("ledger %+v causes %v outages %+v events %v", step.Ledger, step.Causes, step.Outages, step.Events)
	failures := r.failures()
	if len(failures) == 0 || len(step.Outages) == 0 {
		t.Fatalf("%d failures, outages %+v: want one outage", len(failures), step.Outages)
	}
	first := failures[0]
	for _, o := range failures {
		if first.Intended > o.Intended {
			first = o
		}
		if o.Done < killed.began {
			t.Errorf("a request failed %v into the step, before the kill at %v: %s", time.Duration(o.Done), time.Duration(killed.began), o.Error)
		}
	}
	if from := step.Outages[0].FromNS; from != first.Intended {
		t.Errorf("the outage begins at %v, the first request that failed was due at %v", time.Duration(from), time.Duration(first.Intended))
	}
	for range 2 { // a slow machine needs longer than a step
		if r.recovered() {
			return
		}
		step = r.load(t, 60, 8*time.Second, 0, nil)
		t.Logf("ledger %+v causes %v outages %+v", step.Ledger, step.Causes, step.Outages)
	}
	if !r.recovered() {
		t.Errorf("it did not recover: %+v", r.Status())
	}
}

// recovered reports whether, of all that had its turn in the last step, what was due
// last was answered.
func (r *rig) recovered() bool {
	var last results.Outcome
	for _, o := range r.outcomes {
		if o.Fate != results.Unsent && o.Intended >= last.Intended {
			last = o
		}
	}
	return last.Fate == results.OK || last.SessionLost
}

// pollInterval leaves the cores to the system between two questions.
const pollInterval = 5 * time.Millisecond

// pause waits for the next question to a system in other processes: it tells nobody when
// something has happened.
func pause() {
	timer := time.NewTimer(pollInterval)
	<-timer.C
}
