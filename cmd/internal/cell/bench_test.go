package cell

import (
	"context"
	"encoding/csv"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
	"github.com/stagebench/stagebench/workloads/pace"
)

// All repeats of a cell write to one timeline.
func TestTimelineOfTwoRepeats(t *testing.T) {
	dir := cellDir(t)
	f, err := openFiles(dir, results.Cell{Stage: "lb", Workload: "likes"})
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewServer(&recordService{lag: -1, commits: map[string][]time.Time{}})
	t.Cleanup(server.Close)
	schedule, err := pace.Constant(200)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 {
		s := &Stepper{
			Driver: vegeta.Driver{}, Clients: newClients(t, server.URL), Workload: likes{}, SLO: results.DefaultSLO(),
			Timeout: 10 * time.Second, Drain: time.Second, Progress: silent{}, ClientCores: 1, timeline: f.timeline,
		}
		if _, err := s.Step(t.Context(), "fixed", 200, schedule, 100*time.Millisecond); err != nil {
			t.Fatal(err)
		}
	}
	if err := f.close(); err != nil {
		t.Fatal(err)
	}
	file, err := os.Open(dir.TimelinePath())
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = file.Close() }()
	rows, err := csv.NewReader(file).ReadAll()
	if err != nil || len(rows) < 3 {
		t.Fatalf("%v: %q, want a header and a row for each repeat", err, rows)
	}
	for i, row := range rows[1:] {
		if i > 0 && row[0] <= rows[i][0] { // one digit each
			t.Errorf("row %d has second %s, the row before it has %s", i, row[0], rows[i][0])
		}
	}
	if first, last := rows[1][1], rows[len(rows)-1][1]; first != "fixed-1" || last != "fixed-2" {
		t.Errorf("the steps are %s and %s, want fixed-1 and fixed-2", first, last)
	}
}

// without returns a measurement of a cell without a system: its steps go to the given stepper.
func without(s *Stepper, plan Plan) *cellRun {
	r := (&Bench{SLO: s.SLO, Plan: plan}).newRun(Spec{}, results.Cell{})
	r.stepper = s
	return r
}

// A service that always fails has no capacity: it lies below all offered rates.
func TestNoCapacity(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(server.Close)
	s := &Stepper{
		Driver: vegeta.Driver{}, Clients: newClients(t, server.URL), Workload: likes{}, SLO: results.DefaultSLO(),
		Timeout: 10 * time.Second, Drain: time.Second, Progress: silent{}, ClientCores: 1000,
	}
	plan := Quick()
	plan.Search.Start, plan.Search.Min, plan.Search.Max = 50, 40, 100
	plan.WarmupSlice, plan.Reference, plan.Peak = 100*time.Millisecond, 100*time.Millisecond, 100*time.Millisecond
	plan.Step = Length{Ops: 1, Min: 100 * time.Millisecond, Max: 100 * time.Millisecond}
	r := without(s, plan)
	if err := r.measure(t.Context(), true, true); err != nil {
		t.Fatal(err)
	}
	c, _ := r.concluded()
	if c.CapacityRPS != 0 || c.CapacityLow != 0 || c.CapacityHigh != 40 || c.PeakRPS != 0 || len(c.Repeats) != 0 {
		t.Errorf("a service that always fails: capacity %v in %v..%v, peak %v, by visit %v, want a capacity below 40",
			c.CapacityRPS, c.CapacityLow, c.CapacityHigh, c.PeakRPS, c.Repeats)
	}
}

// A client that is stopped for 200 ms makes a step miss an objective that the service meets.
// The step says that the client decided it.
func TestPausedClient(t *testing.T) {
	for _, purpose := range []string{"fixed", "search"} {
		var served atomic.Int64
		service := &recordService{lag: -1, commits: map[string][]time.Time{}}
		paused := make(chan error, 1)
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if served.Add(1) == 100 {
				stop := exec.Command("sh", "-c", `kill -STOP "$0"; sleep 0.2; kill -CONT "$0"`, strconv.Itoa(os.Getpid()))
				go func() { paused <- stop.Run() }()
			}
			service.ServeHTTP(w, r)
		}))
		s := &Stepper{
			Driver: vegeta.Driver{}, Clients: newClients(t, server.URL), Workload: likes{}, SLO: results.DefaultSLO(),
			Timeout: 10 * time.Second, Drain: time.Second, Progress: silent{}, ClientCores: 1,
		}
		schedule, err := pace.Constant(200)
		if err != nil {
			t.Fatal(err)
		}
		step, err := s.Step(t.Context(), purpose, 200, schedule, 2*time.Second)
		if err := errors.Join(err, <-paused); err != nil {
			t.Fatal(err)
		}
		server.Close()
		if step.SLOMet || !step.ByClient || step.Trusted() || results.FindLimit(step).By != "client" {
			t.Errorf("%s: met %v (%s), by the client %v, limit %+v, invalid %q: want the client to be named", purpose,
				step.SLOMet, step.SLOBroken, step.ByClient, results.FindLimit(step), step.Invalid)
		}
		if step.Client.StallMaxNS < 150e6 {
			t.Errorf("%s: longest stall %v, want about 200 ms", purpose, time.Duration(step.Client.StallMaxNS))
		}
	}
}

// scripted is a driver of which all steps succeed, except that the client delays the nth step, and that the target is
// slow above a rate.
type scripted struct {
	vegeta.Driver
	late  map[int]bool // by number of the step
	limit float64      // ops per second; 0 = none
	// lateSlices is the number of reference slices, from the first one, that the client delays.
	lateSlices int
	steps      int
}

func (d *scripted) Run(
	_ context.Context, _ *driver.Clients, plan driver.Plan, sink func(results.Outcome),
) (driver.Report, error) {
	d.steps++
	late := d.late[d.steps]
	if plan.Duration == Default().Reference && d.lateSlices > 0 {
		d.lateSlices--
		late = true
	}
	n := plan.Schedule.Count(plan.Duration)
	for i := range n {
		at := int64(plan.Schedule.At(i))
		o := results.Outcome{Index: i, Class: "like", Intended: at, Dispatched: at, Sent: at, Done: at + 5e6, Status: 200}
		if d.limit > 0 && float64(n) > d.limit*plan.Duration.Seconds() {
			o.Done += 200e6
		}
		if late {
			o.Dispatched, o.Sent, o.Done = at+200e6, at+200e6, at+205e6
		}
		sink(o)
	}
	return driver.Report{Start: time.Now(), Elapsed: plan.Duration, Window: plan.Duration, Scheduled: int64(n)}, nil
}

// visits measures a cell in some visits. Its capacity is at least 400/s.
func (d *scripted) visits(t *testing.T, visits int) *cellRun {
	t.Helper()
	plan := Default()
	plan.Search.Max = 400
	r := without(&Stepper{
		Driver: d, Workload: likes{}, SLO: results.DefaultSLO(), Progress: silent{},
		ClientCores: 1000, // the steps take no time, so their share of the CPU means nothing
	}, plan)
	for n := range visits {
		r.visits = n
		if err := r.measure(t.Context(), n == 0, n == visits-1); err != nil {
			t.Fatal(err)
		}
	}
	return r
}

// Steps that the client decided are measured again, and marked. They do not spoil the cell.
func TestStepsAreRepeated(t *testing.T) {
	// After two steps of warm-up and the peak: the first step near the capacity, and the reference.
	d := &scripted{late: map[int]bool{4: true, 9: true}}
	r := d.visits(t, 1)
	c, _ := r.concluded()
	var steps []string
	for _, s := range c.Steps {
		steps = append(steps, fmt.Sprintf("%s %.0f met=%v repeated=%v", s.Purpose, s.OfferedRPS, s.SLOMet, s.Repeated))
	}
	want := []string{
		"warmup 100 met=true repeated=false", "warmup 100 met=true repeated=false",
		"peak 400 met=true repeated=false",
		"capacity 294 met=false repeated=true", "capacity 294 met=true repeated=false",
		"capacity 396 met=true repeated=false", "capacity 400 met=true repeated=false",
		"warmup 100 met=true repeated=false",
		"reference 100 met=false repeated=true", "reference 100 met=true repeated=false",
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Error("steps (-want +got):\n" + diff)
	}
	if !c.Valid || c.CapacityRPS != 400 || c.CapacityHigh != 0 || len(r.reference.Parts) != 1 {
		t.Errorf("valid %v, capacity %v..%v, %d reference steps, warnings %q", c.Valid, c.CapacityRPS, c.CapacityHigh,
			len(r.reference.Parts), c.Warnings)
	}
}

// If repeating does not help, the figures stay, but the cell is not valid, and the client is its limit.
func TestLateClient(t *testing.T) {
	d := &scripted{late: map[int]bool{}}
	for n := 4; n < 50; n++ {
		d.late[n] = true
	}
	c, _ := d.visits(t, 1).concluded()
	repeated := 0
	for _, s := range c.Steps {
		if s.Repeated {
			repeated++
		}
	}
	if c.Valid || c.LimitedBy != "client" || repeated != 3*maxRepeated+1 || c.CapacityHigh == 0 {
		t.Errorf("valid %v, limited by %s, %d repeated steps, warnings %q", c.Valid, c.LimitedBy, repeated, c.Warnings)
	}
}

// One disturbed step of many does not make a cell invalid if its figures are the same without it. A disturbed slice at
// the reference rate is replaced in the last visit.
func TestHarmlessSteps(t *testing.T) {
	// Step 5 is at 396/s. It is measured again twice, and the first reference slice, too.
	d := &scripted{late: map[int]bool{5: true, 6: true, 7: true}, limit: 350, lateSlices: 3}
	c, _ := d.visits(t, Default().Visits).concluded()
	if !c.Valid || !c.Reference.Valid || c.Reference.Seconds != 11.25 {
		t.Errorf("valid %v, reference valid %v with %v s, warnings %q", c.Valid, c.Reference.Valid, c.Reference.Seconds,
			c.Warnings)
	}
	text := strings.Join(c.Warnings, "\n")
	if !strings.Contains(text, "without them capacity and peak are the same; the first one, a capacity step at") {
		t.Errorf("warnings %q, want the doubtful step", c.Warnings)
	}
}

// The slices of several visits give one reference step, with the percentiles of all their ops.
func TestReferenceIsPooled(t *testing.T) {
	r := (&scripted{}).visits(t, Default().Visits)
	c, _ := r.concluded()
	slices, all := len(r.reference.Parts), c.Reference
	one := r.reference.Parts[0].ResponseNS
	if slices != r.Plan.Visits || one.P99 != nil || all.ResponseNS.P99 == nil || all.ResponseAll.P99 == nil {
		t.Fatalf("%d slices, p99 %v, joined %v", slices, one.P99, all.ResponseNS)
	}
	var scheduled int64
	for _, part := range r.reference.Parts {
		scheduled += part.Ledger.Scheduled
	}
	op := all.Ops["like"]
	if all.Ledger.Scheduled != scheduled || op.Count != scheduled || op.ResponseNS.Count != scheduled ||
		all.ResponseNS.Count != scheduled || !all.Valid || all.Seconds != 11.25 {
		t.Errorf("joined step %+v, want %d ops in 11.25 s", all, scheduled)
	}
}

// Each cell has its visits, in a random order and then in the reverse one.
func TestVisits(t *testing.T) {
	b := &Bench{Plan: Default(), Seed: 1}
	visits := b.visits(make([]Spec, 5))
	if len(visits) != 5*b.Plan.Visits {
		t.Fatalf("%d visits, want %d of each of 5 cells", len(visits), b.Plan.Visits)
	}
	first, second := visits[:5], slices.Clone(visits[5:10])
	slices.Reverse(second)
	for i, v := range first {
		if v.n != 0 || second[i].n != 1 || v.cell != second[i].cell {
			t.Errorf("visits %v: the second pass does not reverse the first", visits)
			break
		}
	}
	order := func(seed uint64) (cells []int) {
		for _, v := range (&Bench{Plan: Default(), Seed: seed}).visits(make([]Spec, 5)) {
			cells = append(cells, v.cell)
		}
		return cells
	}
	if !slices.Equal(order(1), order(1)) || slices.Equal(order(1), order(2)) || slices.IsSorted(order(1)[:5]) {
		t.Errorf("orders %v and %v: they should depend on the seed", order(1), order(2))
	}
	fixed := slices.Repeat([]Spec{{Fixed: &Fixed{RPS: 1}}}, 5)
	if n := len(b.visits(fixed)); n != 5 {
		t.Errorf("%d visits at a fixed rate, want one for each cell", n)
	}
}
