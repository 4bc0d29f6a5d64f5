package cell

import (
	"encoding/csv"
	"errors"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
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
// The step says that the client decided it.
func TestPausedClient(t *testing.T) {
	server := httptest.NewServer(&recordService{lag: -1, commits: map[string][]time.Time{}})
	t.Cleanup(server.Close)
	s := &Stepper{
		Driver: vegeta.Driver{}, Clients: newClients(t, server.URL), Workload: likes{}, SLO: results.DefaultSLO(),
		Timeout: 10 * time.Second, Drain: time.Second, Progress: silent{}, ClientCores: 1,
	}
	schedule, err := pace.Constant(200)
	if err != nil {
		t.Fatal(err)
	}
	pause := exec.Command("sh", "-c", `sleep 0.5; kill -STOP "$0"; sleep 0.2; kill -CONT "$0"`, strconv.Itoa(os.Getpid()))
	if err := pause.Start(); err != nil {
		t.Fatal(err)
	}
	step, err := s.Step(t.Context(), "fixed", 200, schedule, 2*time.Second)
	if err := errors.Join(err, pause.Wait()); err != nil {
		t.Fatal(err)
	}
	if step.SLOMet || !step.ByClient || !step.Disturbed() || results.FindLimit(step).By != "client" {
		t.Errorf("met %v, by the client %v, limit %+v, invalid %q: want the client to be named",
			step.SLOMet, step.ByClient, results.FindLimit(step), step.Invalid)
	}
}
