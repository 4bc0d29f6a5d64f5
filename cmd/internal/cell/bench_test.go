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
	"strconv"
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

// A cell stores both ends of the capacity bracket of each repeat.
func TestBracketOfARepeat(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusServiceUnavailable)
	}))
	t.Cleanup(server.Close)
	s := &Stepper{
		Driver: vegeta.Driver{}, Clients: newClients(t, server.URL), Workload: likes{}, SLO: results.DefaultSLO(),
		Timeout: 10 * time.Second, Drain: time.Second, Progress: silent{}, ClientCores: 1,
	}
	b := &Bench{SLO: results.DefaultSLO(), Plan: Quick()}
	b.Plan.Search.Start, b.Plan.Search.Min = 50, 50
	b.Plan.WarmupSlice, b.Plan.Reference = 100*time.Millisecond, 100*time.Millisecond
	var c results.Cell
	if err := (&repeat{Bench: b, cell: &c, stepper: s}).search(t.Context()); err != nil {
		t.Fatal(err)
	}
	if len(c.Repeats) != 1 || c.Repeats[0] != 0 || len(c.RepeatsHigh) != 1 || c.RepeatsHigh[0] != 50 {
		t.Errorf("a service that always fails: bracket %v..%v, want 0..50", c.Repeats, c.RepeatsHigh)
	}
}

// A client that is stopped for 200 ms makes a step miss an objective that the service meets.
// The step says that the client decided it, also if it was cut short.
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
		if step.SLOMet || !step.ByClient || !step.Disturbed() || results.FindLimit(step).By != "client" {
			t.Errorf("%s: met %v (%s), by the client %v, limit %+v, invalid %q: want the client to be named", purpose,
				step.SLOMet, step.SLOBroken, step.ByClient, results.FindLimit(step), step.Invalid)
		}
		if step.Client.StallMaxNS < 150e6 {
			t.Errorf("%s: longest stall %v, want about 200 ms", purpose, time.Duration(step.Client.StallMaxNS))
		}
	}
}

// scripted is a driver of which all steps succeed, except that the client delays the nth step.
type scripted struct {
	vegeta.Driver
	late  map[int]bool // by number of the step
	steps int
}

func (d *scripted) Run(
	_ context.Context, _ *driver.Clients, plan driver.Plan, sink func(results.Outcome),
) (driver.Report, error) {
	d.steps++
	n := plan.Schedule.Count(plan.Duration)
	for i := range n {
		at := int64(plan.Schedule.At(i))
		o := results.Outcome{Index: i, Class: "like", Intended: at, Dispatched: at, Sent: at, Done: at + 5e6, Status: 200}
		if d.late[d.steps] {
			o.Dispatched, o.Sent, o.Done = at+200e6, at+200e6, at+205e6
		}
		sink(o)
	}
	return driver.Report{Start: time.Now(), Elapsed: plan.Duration, Window: plan.Duration, Scheduled: int64(n)}, nil
}

// Steps that the client decided are measured again, and marked. They do not spoil the cell.
func TestStepsAreRepeated(t *testing.T) {
	d := &scripted{late: map[int]bool{3: true, 5: true}} // after two steps of warm-up: the reference, the first search
	s := &Stepper{
		Driver: d, Workload: likes{}, SLO: results.DefaultSLO(), Progress: silent{},
		ClientCores: 1000, // the steps take no time, so their share of the CPU means nothing
	}
	b := &Bench{SLO: results.DefaultSLO(), Plan: Default()}
	b.Plan.Search.Max = 400
	c := results.Cell{CapacityMethod: "bracket"}
	if err := (&repeat{Bench: b, cell: &c, stepper: s}).search(t.Context()); err != nil {
		t.Fatal(err)
	}
	conclude(&c)
	var steps []string
	for _, s := range c.Steps {
		steps = append(steps, fmt.Sprintf("%s %.0f met=%v repeated=%v", s.Purpose, s.OfferedRPS, s.SLOMet, s.Repeated))
	}
	want := []string{
		"warmup 100 met=true repeated=false", "warmup 100 met=true repeated=false",
		"reference 100 met=false repeated=true", "reference 100 met=true repeated=false",
		"search 200 met=false repeated=true", "search 200 met=true repeated=false",
		"search 400 met=true repeated=false", "confirm 400 met=true repeated=false",
	}
	if diff := cmp.Diff(want, steps); diff != "" {
		t.Error("steps (-want +got):\n" + diff)
	}
	if !c.Valid || c.CapacityRPS != 400 || len(c.ReferenceSteps()) != 1 {
		t.Errorf("valid %v, capacity %v, %d reference steps, warnings %q", c.Valid, c.CapacityRPS,
			len(c.ReferenceSteps()), c.Warnings)
	}
}
