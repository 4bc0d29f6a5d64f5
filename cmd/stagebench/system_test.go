package main

import (
	"bytes"
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
	"github.com/stagebench/stagebench/internal/polltest"
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

// rig is a running system with clients that send load to it.
type rig struct {
	*local.System
	topology sut.Topology
	stepper  *cell.Stepper
	outcomes []results.Outcome // of the last step
	logs     string            // directory of the nodes' logs
}

// roomy is the size of a unit in cores. It is large enough for the race detector, which
// makes nodes ten times slower. These tests check results, not speed.
const roomy = 0.3

// silence is the time without an answer after which a database counts as dead in these
// tests. It is long, so that a busy machine causes no failover. A killed database refuses
// connections, and a few failed probes detect that sooner.
const silence = 5 * time.Second

// silent is a Progress that shows nothing.
type silent struct{}

func (silent) Visit(string, int, int, time.Duration) {}
func (silent) Step(string, float64)                  {}
func (silent) Sample(*int64, *int64, float64)        {}

// templates returns the directory of the templates. All tests of this binary share it, so
// that each template is built once.
func templates() string { return os.Getenv(templatesVariable) }

// bringUp brings a stage up on roomy hosts and connects clients for a preset workload.
func bringUp(t *testing.T, stage sut.Stage, knobs sut.Knobs, workload string) *rig {
	t.Helper()
	r := bringUpSized(t, stage, knobs, roomy)
	r.connect(t, shipped(t, workload), driver.ClientConfig{Connections: 32})
	return r
}

// admin sends a request to the admin address of a node. The caller closes the body.
func (r *rig) admin(t *testing.T, method, node, path string, body []byte) *http.Response {
	t.Helper()
	response, err := r.ask(t.Context(), method, node, path, body)
	if err != nil {
		t.Fatal(err)
	}
	return response
}

// ask is admin for a node that may be dead.
func (r *rig) ask(ctx context.Context, method, node, path string, body []byte) (*http.Response, error) {
	for _, n := range r.Status() {
		if n.Node != node {
			continue
		}
		req, err := http.NewRequestWithContext(ctx, method, "http://"+n.Admin+path, bytes.NewReader(body))
		if err != nil {
			return nil, err
		}
		req.Header.Set("Authorization", n.Secret.Bearer())
		return http.DefaultClient.Do(req)
	}
	return nil, fmt.Errorf("there is no node %s", node)
}

// secret returns the secret of the system.
func (r *rig) secret() sut.Secret { return r.Status()[0].Secret }

// smallData is the data set of all tests of this package.
func smallData() sut.Data { return sut.Data{Size: "small", Seed: 1} }

// photoPath and thumbPath are the paths of the seeded photo with this index, from 1.
func photoPath(index int) string { return fmt.Sprintf("/api/photos/%d", seededPhoto(index)) }
func thumbPath(index int) string { return fmt.Sprintf("/img/%d/thumb.jpg", seededPhoto(index)) }

func seededPhoto(index int) photos.ID {
	counts, _ := smallData().Counts()
	return photos.PhotoID(index, counts)
}

// shipped returns the preset workload with this name.
func shipped(t *testing.T, name string) workloads.Workload {
	t.Helper()
	l, err := load.Maker{Data: smallData(), Service: true}.Make(name)
	if err != nil {
		t.Fatal(err)
	}
	return l.Workload
}

// bringUpSized brings a stage up. unit is the size of a unit in cores. If the test fails, its
// log shows the nodes and events of the system.
func bringUpSized(t *testing.T, stage sut.Stage, knobs sut.Knobs, unit float64) *rig {
	t.Helper()
	skipWithoutEngines(t, knobs)
	data := smallData()
	up, err := newLauncher(data, slog.New(slog.NewTextHandler(io.Discard, nil)), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	r := &rig{logs: t.TempDir()}
	if r.topology, err = ladder.Build(stage, knobs, unit); err != nil {
		t.Fatal(err)
	}
	up.TemplateDir, up.FailoverSilence = templates(), silence
	if r.System, err = up.up(t.Context(), r.topology, r.logs); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("nodes %+v\nevents %+v", r.Status(), r.Events())
		}
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

// connect makes new clients for a workload. They replace the earlier clients.
func (r *rig) connect(t *testing.T, workload workloads.Workload, config driver.ClientConfig) {
	t.Helper()
	if err := cell.Aim(&config, r.Endpoints(), r.Fallbacks()); err != nil {
		t.Fatal(err)
	}
	config.Sources, config.DialTimeout = cell.Sources(config.Endpoint, 1), 5*time.Second
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
		Drain: time.Second, Progress: silent{}, Target: r.System, ClientCores: float64(runtime.NumCPU()),
		Nodes:     func(context.Context) ([]targets.NodeStatus, error) { return r.Status(), nil },
		Figures:   ladder.Figures(),
		OnOutcome: func(o results.Outcome) { r.outcomes = append(r.outcomes, o) },
	}
}

// failed counts the requests that failed. Requests that were not sent in time do not
// count, because a slow machine causes them. If no request succeeded, all count as failed.
func failed(s results.Step) int64 {
	if s.Ledger.OK == 0 {
		return s.Ledger.Scheduled
	}
	return s.Ledger.Errors() - s.Ledger.Unsent
}

// failures returns the outcomes of the last step that count as failed. Lost sessions are
// not among them.
func (r *rig) failures() []results.Outcome {
	return slices.DeleteFunc(slices.Clone(r.outcomes), func(o results.Outcome) bool {
		return !o.Fate.Failed() || o.Fate == results.Unsent || o.SessionLost
	})
}

// killing is the time of a kill, in ns since the start of the step: the node was alive
// until began and dead from over on.
type killing struct{ began, over int64 }

// kill offers a constant rate for d. It kills a node or a host at a time within the step.
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
	for _, event := range r.Events() {
		for _, e := range step.Events {
			if event.Text == text && e.Text == event.Node+": "+text {
				return step, killing{e.AtNS, e.AtNS + over.UnixNano() - event.UnixNS}
			}
		}
	}
	t.Fatalf("the kill of %s is not among the events of the step: %+v", name, step.Events)
	return step, killing{}
}

// inFlight counts the requests of the last step that were in flight at a kill, or were
// sent before a client could notice it.
func (r *rig) inFlight(k killing) (n int64) {
	for _, o := range r.outcomes {
		if o.Sent >= 0 && o.Sent <= k.over+int64(50*time.Millisecond) && o.Done >= k.began {
			n++
		}
	}
	return n
}

// load offers a constant rate for d. It calls act at a time within the step, unless act is
// nil. act runs on the goroutine of the test, so it may end the test.
func (r *rig) load(t *testing.T, rate float64, d, at time.Duration, act func()) results.Step {
	t.Helper()
	return r.loadUntil(t.Context(), t, rate, d, at, act)
}

// loadWhile is load until a time after act has returned. On a busy machine act can take long.
func (r *rig) loadWhile(t *testing.T, rate float64, at, after time.Duration, act func()) results.Step {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	return r.loadUntil(ctx, t, rate, testTimeout, at, func() {
		act()
		time.AfterFunc(after, cancel)
	})
}

// loadUntil is load that also ends with a context.
func (r *rig) loadUntil(
	ctx context.Context, t *testing.T, rate float64, d, at time.Duration, act func(),
) results.Step {
	t.Helper()
	r.outcomes = nil
	schedule, err := pace.Constant(rate)
	if err != nil {
		t.Fatal(err)
	}
	var step results.Step
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		step, err = r.stepper.Step(ctx, "attack", rate, schedule, d)
	}()
	defer func() { <-ended }() // also when act ends the test: the step must not outlive the system
	if act != nil {
		select {
		case <-time.After(at):
			act()
		case <-ended: // with an error
		}
	}
	<-ended
	if err != nil {
		t.Fatal(err)
	}
	if err := step.Ledger.Check(); err != nil {
		t.Error(err)
	}
	return step
}

// engines returns the knobs that select the embedded and the native engines.
func engines() map[string]sut.Knobs {
	return map[string]sut.Knobs{
		"embedded": {"db.engine": "sqlite", "lb.engine": "balance"},
		"native": {
			"db.engine": "postgres", "lb.engine": "haproxy", "cache.engine": "redis", "edge.engine": "varnish",
			"session.engine": "redis", "queue.engine": "nats-server",
		},
	}
}

// At every stage, the requests that the server counts are exactly those of the ledger. The native edge is nginx:
// Varnish adds the last requests of its threads to its counters when they get work again, so up to four of the
// log-ins before the step were counted in it.
func TestLedgerAgreesWithTheServer(t *testing.T) {
	t.Parallel()
	for name, knobs := range engines() {
		for _, info := range ladder.Stages() {
			stage := info.Stage
			t.Run(name+"/"+string(stage), func(t *testing.T) {
				t.Parallel()
				exact := knobs
				if knobs["edge.engine"] == "varnish" {
					exact = with(knobs, sut.Knobs{"edge.engine": "nginx"})
				}
				r := bringUp(t, stage, exact, "write-heavy")
				step := r.load(t, 60, time.Second, 0, nil)
				if step.ServerCount == nil {
					t.Error("the server did not count")
				} else if *step.ServerCount != step.Ledger.Sent {
					t.Errorf("the server counted %d, the client sent %d", *step.ServerCount, step.Ledger.Sent)
				}
				if failed(step) > 0 {
					t.Errorf("ledger %+v causes %v, want no failed request", step.Ledger, step.Causes)
				}
			})
		}
	}
}

// One of three web hosts is killed. Only requests fail that were in flight on it or arrived
// for it during one health interval. The host is restarted and gets traffic again.
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
				t.Errorf("%d requests failed, want at most %d", failed(step), allowed)
			}
			if step.Ledger.SessionLost == 0 {
				t.Error("no session was lost, but the killed host had sessions in its memory")
			}
			r.servesAgain(t, "web-2")
		})
	}
}

// servesAgain waits until a node answers a request that was sent to the frontend.
func (r *rig) servesAgain(t *testing.T, node string) {
	t.Helper()
	eventually(t, node+" answers requests to the frontend", func() bool {
		response, err := http.Get(r.Endpoints()[0] + photoPath(1))
		if err != nil {
			return false
		}
		_ = response.Body.Close() // only the header matters
		return response.Header.Get("X-Served-By") == node && response.StatusCode == http.StatusOK
	})
}

// The only host is killed. The step reports an outage that begins with the first failed
// request, and the system recovers.
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
			t.Errorf("a request failed at %v, before the kill at %v: %s",
				time.Duration(o.Done), time.Duration(killed.began), o.Error)
		}
	}
	if from := step.Outages[0].FromNS; from != first.Intended {
		t.Errorf("the outage begins at %v, but the first failed request was due at %v",
			time.Duration(from), time.Duration(first.Intended))
	}
	for range 2 { // on a slow machine, the recovery takes longer than one step
		if r.recovered() {
			return
		}
		step = r.load(t, 60, 8*time.Second, 0, nil)
		t.Logf("ledger %+v causes %v outages %+v", step.Ledger, step.Causes, step.Outages)
	}
	if !r.recovered() {
		t.Error("the system did not recover: the last request of the step failed")
	}
}

// recovered reports whether the last request that was sent in the last step was answered.
func (r *rig) recovered() bool {
	var last results.Outcome
	for _, o := range r.outcomes {
		if o.Fate != results.Unsent && o.Intended >= last.Intended {
			last = o
		}
	}
	return last.Fate == results.OK || last.SessionLost
}

// testTimeout is the time in which everything that a test waits for must happen.
const testTimeout = time.Minute

// pollInterval is the time between two polls. It leaves the cores to the system.
const pollInterval = 5 * time.Millisecond

// eventually polls until a condition holds. It ends the test after testTimeout.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, testTimeout, pollInterval, what, holds)
}
