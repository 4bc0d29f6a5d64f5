package cell

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
	"github.com/stagebench/stagebench/workloads/pace"
)

// recordService is a service with versioned records. Reads come from a replica with a
// constant lag. A failover can lose the last writes.
type recordService struct {
	lag      time.Duration // negative = no lag
	failover int64         // the acknowledged write at which a failover happens; 0 = none

	mu      sync.Mutex
	commits map[string][]time.Time // guarded by mu; times of the writes of a record; the first made version 2
	acked   int64                  // guarded by mu; acknowledged writes
	applied int64                  // guarded by mu; writes that were applied and answered with 503
	refused int64                  // guarded by mu; writes that were not applied and answered with 503
	lost    int64                  // guarded by mu; acknowledged writes that a failover lost
}

// ambiguousRecord is the record whose writes are never acknowledged.
const ambiguousRecord = "/records/ambiguous"

// cachedRecord is the record that is read from a cache.
const cachedRecord = "/records/1"

func (s *recordService) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	version := 1
	switch {
	case r.Method == http.MethodGet:
		if r.URL.Path == cachedRecord {
			w.Header().Set(driver.CacheHeader, driver.CacheHit)
		}
		for _, at := range s.commits[r.URL.Path] {
			if time.Since(at) > s.lag {
				version++
			}
		}
	case r.URL.Path == ambiguousRecord:
		if s.refused < s.applied {
			s.refused++
		} else {
			s.applied++
			s.commits[ambiguousRecord] = append(s.commits[ambiguousRecord], time.Now())
		}
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	default:
		if s.acked++; s.acked == s.failover {
			s.failOver()
		}
		s.commits[r.URL.Path] = append(s.commits[r.URL.Path], time.Now())
		version += len(s.commits[r.URL.Path])
	}
	w.Header().Set(driver.VersionHeader, strconv.Itoa(version))
}

// failOver removes up to two acknowledged writes of every record. The caller holds mu.
func (s *recordService) failOver() {
	for path, commits := range s.commits {
		if path != ambiguousRecord {
			lost := min(2, len(commits))
			s.commits[path] = commits[:len(commits)-lost]
			s.lost += int64(lost)
		}
	}
}

// likes is a workload of alternating reads and writes of three records by two users. With
// ambiguous, some ops use the record whose writes are never acknowledged.
type likes struct{ ambiguous bool }

func (likes) Name() string { return "likes" }
func (likes) Users() int   { return 2 }
func (l likes) Op(n uint64) workloads.Op {
	op := workloads.Op{
		Index: n, Class: "read", Method: http.MethodGet, Path: fmt.Sprintf("/records/%d", n/2%3), User: int(n / 8 % 2),
	}
	// The first writes to the ambiguous record come long after the first reads, so that its first version is known.
	if l.ambiguous && n%10 < 2 && (n%2 == 0 || n >= 50) {
		op.Path = ambiguousRecord
	}
	if n%2 == 1 {
		op.Class, op.Method, op.Write = "write", http.MethodPost, true
	}
	op.Record = op.Path
	return op
}

// silent is a Progress that ignores everything.
type silent struct{}

func (silent) Visit(string, int, int, time.Duration) {}
func (silent) Step(string, float64)                  {}
func (silent) Sample(_, _ *int64, _ float64)         {}

func newClients(t *testing.T, u string) *driver.Clients {
	t.Helper()
	endpoint, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	config := driver.ClientConfig{Endpoint: endpoint, Connections: 8, DialTimeout: 5 * time.Second}
	clients, err := driver.NewClients(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clients.Close)
	return clients
}

// twoSteps sends a workload to a service in two steps. Configure, if not nil, changes the
// stepper first.
func twoSteps(
	t *testing.T, service *recordService, w workloads.Workload, configure func(*Stepper),
) (*Stepper, []results.Step) {
	t.Helper()
	service.commits = map[string][]time.Time{}
	server := httptest.NewServer(service)
	t.Cleanup(server.Close)
	s := &Stepper{
		Driver: vegeta.Driver{}, Clients: newClients(t, server.URL), Workload: w, SLO: results.DefaultSLO(),
		Timeout: 10 * time.Second, Drain: time.Second, Progress: silent{}, ClientCores: 1, History: history.New(),
	}
	if configure != nil {
		configure(s)
	}
	var steps []results.Step
	for range 2 {
		schedule, err := pace.Constant(200)
		if err != nil {
			t.Fatal(err)
		}
		step, err := s.Step(t.Context(), "fixed", 200, schedule, time.Second)
		if err != nil {
			t.Fatal(err)
		}
		steps = append(steps, step)
	}
	return s, steps
}

// patient returns settings for reading back that wait for a lagging replica.
func patient() driver.ReadBack {
	return driver.ReadBack{Timeout: 10 * time.Second, MaxWait: 30 * time.Second, Pause: 10 * time.Millisecond}
}

// The age of a stale read is the lag of the replica. It is never higher, not even on a slow
// machine: the client sees the acknowledgement of a write after the commit, and sends a
// read before the replica answers it. It is almost as high for some reads.
func TestStaleReads(t *testing.T) {
	const lag = 400 * time.Millisecond
	service := &recordService{lag: lag}
	s, steps := twoSteps(t, service, likes{}, nil)
	var reads int64
	for i, step := range steps {
		stale := step.Stale
		if stale == nil || stale.Stale == 0 || stale.AgeNS.Count != stale.Stale ||
			stale.RYWViolations == 0 || stale.RYWViolations > stale.Stale {
			t.Fatalf("step %d: %+v", i, stale)
		}
		if stale.Hits == 0 || stale.StaleHits == 0 || stale.StaleHits == stale.Stale ||
			stale.HitAgeNS.Count != stale.StaleHits {
			t.Errorf("step %d: want some stale reads from the cache, because it serves one of three records: %+v", i, stale)
		}
		reads += stale.Reads
		rounding := int64(lag) / 500 // of the histogram
		if oldest := *stale.AgeNS.Max; oldest > int64(lag)+rounding || oldest < int64(lag)/2 {
			t.Errorf("step %d: highest age %v, want about %v and not more", i, time.Duration(oldest), lag)
		}
	}
	// Every other op is a read. Some ops at the end may not be sent in time.
	if want := steps[0].Ledger.OK/2 + steps[1].Ledger.OK/2; reads < want-2 || reads > want+2 {
		t.Errorf("%d reads judged, want %d", reads, want)
	}
	// CheckWrites waits until the replica has caught up. So no write is lost.
	writes, err := CheckWrites(t.Context(), s.History, s.Clients, patient())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(results.Writes{Acknowledged: service.acked}, writes); diff != "" {
		t.Errorf("writes (-want +got)\n%s", diff)
	}
}

func TestNoStaleReadsWithoutLag(t *testing.T) {
	_, steps := twoSteps(t, &recordService{lag: -1}, likes{}, nil)
	for i, step := range steps {
		if step.Stale == nil || step.Stale.Reads == 0 || step.Stale.Stale != 0 {
			t.Errorf("step %d: %+v", i, step.Stale)
		}
	}
}

// CheckWrites counts the writes that a failover lost, and the writes that were applied
// although they were answered with an error.
func TestLostWrites(t *testing.T) {
	service := &recordService{lag: -1, failover: 60}
	s, _ := twoSteps(t, service, likes{ambiguous: true}, nil)
	writes, err := CheckWrites(t.Context(), s.History, s.Clients, patient())
	if err != nil {
		t.Fatal(err)
	}
	want := results.Writes{
		Acknowledged: service.acked, Lost: service.lost,
		Ambiguous: service.applied + service.refused, AmbiguousApplied: service.applied,
	}
	if diff := cmp.Diff(want, writes); diff != "" || service.lost == 0 || service.applied == 0 {
		t.Errorf("writes (-want +got)\n%s", diff)
	}
}

// What counts is the record in the database, not an old one that a cache keeps until its TTL ends.
func TestReadBackPassesCaches(t *testing.T) {
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		version := "1"
		if r.Header.Get("Cache-Control") == "no-cache" {
			version = "2"
		}
		w.Header().Set(driver.VersionHeader, version)
	}))
	t.Cleanup(server.Close)
	config := driver.ReadBack{Timeout: 10 * time.Second, Pause: time.Millisecond}
	found, err := newClients(t, server.URL).ReadVersions(t.Context(), map[string]int64{"/a": 2}, config)
	if err != nil || found["/a"] != 2 {
		t.Errorf("%v, %v", found, err)
	}
}

// Reading back from a stopped target ends after the patience and returns no versions.
func TestReadBackFromStoppedTarget(t *testing.T) {
	service := &recordService{lag: -1}
	server := httptest.NewServer(service)
	clients := newClients(t, server.URL)
	server.Close()
	config := driver.ReadBack{Timeout: time.Second, MaxWait: 50 * time.Millisecond, Pause: 10 * time.Millisecond}
	found, err := clients.ReadVersions(t.Context(), map[string]int64{"/a": 2, "/b": 3}, config)
	if err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	cancelled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := clients.ReadVersions(cancelled, map[string]int64{"/a": 2}, config); err == nil {
		t.Error("reading back continued after the cancellation")
	}
}

// cellDir creates a run and returns the directory of a cell.
func cellDir(t *testing.T) *rundir.CellDir {
	t.Helper()
	run, err := rundir.Create(t.TempDir()+"/run", results.Manifest{})
	if err != nil {
		t.Fatal(err)
	}
	dir, err := run.Cell("lb/likes")
	if err != nil {
		t.Fatal(err)
	}
	return dir
}

// The events of a target tell what its autoscaler did during a step. What was before it counts for the supply only.
func TestAutoscalingOfAStep(t *testing.T) {
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	at := func(seconds int64) int64 { return start.UnixNano() + seconds*int64(time.Second) }
	metric := 90.0
	events := []targets.Event{
		{UnixNS: at(-9), Node: "web-1", Text: "serving", Supply: &targets.Supply{Serving: 1, Hosts: 1}},
		{UnixNS: at(-5), Node: "autoscaler", Scaling: &targets.Scaling{From: 1, To: 1, Reason: "on"}},
		{UnixNS: at(-1), Node: "lb-1", Text: "serving"},
		{
			UnixNS: at(2), Node: "autoscaler", Supply: &targets.Supply{Serving: 1, Hosts: 1},
			Scaling: &targets.Scaling{From: 1, To: 2, Advice: 2, Metric: &metric, Limit: "max", Reason: "CPU"},
		},
		{UnixNS: at(3), Node: "web-2", Text: "serving", Supply: &targets.Supply{Serving: 1, Hosts: 2}},
		{UnixNS: at(4), Node: "web-2", Text: "takes part", Supply: &targets.Supply{Serving: 2, Hosts: 2}},
		{UnixNS: at(11), Node: "autoscaler", Scaling: &targets.Scaling{From: 2, To: 1}},
	}
	want := &results.Autoscaling{
		Decisions: []results.ScalingDecision{
			{AtNS: 2e9, From: 1, To: 2, Advice: 2, Metric: &metric, Limit: "max", Reason: "CPU"},
		},
		Supply: []results.Supply{
			{Serving: 1, Hosts: 1}, {AtNS: 3e9, Serving: 1, Hosts: 2}, {AtNS: 4e9, Serving: 2, Hosts: 2},
		},
		HostSeconds: 3 + 7*2,
	}
	if diff := cmp.Diff(want, autoscalingOf(events, start, start.Add(10*time.Second))); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	if got := autoscalingOf(events[:1], start, start.Add(10*time.Second)); got != nil {
		t.Errorf("no autoscaler: %+v, want nil", got)
	}
}

// Faults that are injected during a step are in its events, sorted by time, and in the
// timeline.
func TestFaultsDuringAStep(t *testing.T) {
	const ordered, sudden = "died: killed by SIGKILL on request", "died: exit status 5"
	dir := cellDir(t)
	rows, err := dir.CreateTimeline()
	if err != nil {
		t.Fatal(err)
	}
	_, steps := twoSteps(t, &recordService{lag: -1}, likes{}, func(s *Stepper) {
		s.timeline = &timeline{rows: rows}
		s.Faults = func(ctx context.Context, start time.Time) []targets.Event {
			<-ctx.Done() // the end of the step
			return []targets.Event{
				{UnixNS: start.Add(500 * time.Millisecond).UnixNano(), Node: "db-2", Text: sudden},
				{UnixNS: start.Add(200 * time.Millisecond).UnixNano(), Node: "db-1", Text: ordered},
			}
		}
	})
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	for i, step := range steps {
		if len(step.Events) != 2 || step.Events[0].Text != "db-1: "+ordered || step.Events[1].Text != "db-2: "+sudden {
			t.Errorf("step %d: events %+v", i, step.Events)
		}
		// A death that was asked for is no reason to doubt the figures.
		if warnings := strings.Join(step.Warnings, "\n"); !strings.Contains(warnings, sudden) ||
			strings.Contains(warnings, ordered) {
			t.Errorf("step %d: warnings %q, want only the sudden death", i, step.Warnings)
		}
	}
	text, err := os.ReadFile(dir.TimelinePath())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "db-1: "+ordered+"; db-2: "+sudden); n != 2 {
		t.Errorf("%d rows of the timeline contain the events, want one per step:\n%s", n, text)
	}
}
