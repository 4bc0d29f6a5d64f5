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

// lagging is a service whose reads come from a replica that is behind by exactly
// lag, and whose primary can fail over to one that lacks the last writes.
type lagging struct {
	lag time.Duration

	mu       sync.Mutex
	commits  map[string][]time.Time // guarded by mu; the i-th made version i+2
	acked    int64                  // guarded by mu
	applied  int64                  // guarded by mu; writes that took effect and were answered 503
	refused  int64                  // guarded by mu; writes that were answered 503 and did nothing
	failover int64                  // the write before which a failover takes place; 0 = none
	lost     int64                  // guarded by mu
}

// unsure is the record whose writes are never acknowledged.
const unsure = "/records/unsure"

// cached is the record whose reads a cache answers.
const cached = "/records/1"

func (s *lagging) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.mu.Lock()
	defer s.mu.Unlock()
	version := 1
	switch {
	case r.Method == http.MethodGet:
		if r.URL.Path == cached {
			w.Header().Set(driver.CacheHeader, driver.CacheHit)
		}
		for _, at := range s.commits[r.URL.Path] {
			if time.Since(at) > s.lag {
				version++
			}
		}
	case r.URL.Path == unsure:
		if s.refused < s.applied {
			s.refused++
		} else {
			s.applied++
			s.commits[unsure] = append(s.commits[unsure], time.Now())
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

// failOver takes back up to two writes of every record; the caller holds mu.
func (s *lagging) failOver() {
	for path, commits := range s.commits {
		if path != unsure {
			gone := min(2, len(commits))
			s.commits[path] = commits[:len(commits)-gone]
			s.lost += int64(gone)
		}
	}
}

// likes are reads and writes of three records by two users in turns, and now and
// then of the one whose writes are never acknowledged.
type likes struct{ unsure bool }

func (likes) Name() string { return "likes" }
func (likes) Users() int   { return 2 }
func (l likes) Op(n uint64) workloads.Op {
	op := workloads.Op{Index: n, Class: "read", Method: http.MethodGet, Path: fmt.Sprintf("/records/%d", n/2%3), User: int(n / 8 % 2)}
	if l.unsure && n%10 < 2 {
		op.Path = unsure
	}
	if n%2 == 1 {
		op.Class, op.Method, op.Write = "write", http.MethodPost, true
	}
	op.Record = op.Path
	return op
}

// silent is a Progress.
type silent struct{}

func (silent) Step(string, float64)          {}
func (silent) Sample(_, _ *int64, _ float64) {}

func clientsOf(t *testing.T, u string) *driver.Clients {
	t.Helper()
	endpoint, err := url.Parse(u)
	if err != nil {
		t.Fatal(err)
	}
	clients, err := driver.NewClients(driver.ClientConfig{Endpoint: endpoint, Connections: 8, DialTimeout: 5 * time.Second})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(clients.Close)
	return clients
}

// offer drives the service in two steps and returns them.
func offer(t *testing.T, service *lagging, w workloads.Workload, change func(*Stepper)) (*Stepper, []results.Step) {
	t.Helper()
	service.commits = map[string][]time.Time{}
	server := httptest.NewServer(service)
	t.Cleanup(server.Close)
	s := &Stepper{
		Driver: vegeta.Driver{}, Clients: clientsOf(t, server.URL), Workload: w, SLO: results.DefaultSLO(),
		Timeout: 10 * time.Second, Drain: time.Second, Progress: silent{}, ClientCPU: 1, History: history.New(),
	}
	if change != nil {
		change(s)
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

func patient() driver.ReadBack {
	return driver.ReadBack{Timeout: 10 * time.Second, Patience: 30 * time.Second, Pause: 10 * time.Millisecond}
}

// The age of a stale answer is how far the replica is behind: never more, however
// slow the machine is, because the clocks of client and service nest; and nearly
// that where the next write came soon after the one that is shown.
func TestStaleAnswersAreAsOldAsTheReplicaIsBehind(t *testing.T) {
	const lag = 400 * time.Millisecond
	service := &lagging{lag: lag}
	s, steps := offer(t, service, likes{}, nil)
	var reads int64
	for i, step := range steps {
		stale := step.Stale
		if stale == nil || stale.Stale == 0 || stale.RYWViolations == 0 || stale.RYWViolations > stale.Stale || stale.AgeNS.Count != stale.Stale {
			t.Fatalf("step %d: %+v", i, stale)
		}
		if stale.Hits == 0 || stale.StaleHits == 0 || stale.StaleHits == stale.Stale || stale.HitAgeNS.Count != stale.StaleHits {
			t.Errorf("step %d: one record of three comes from a cache: %+v", i, stale)
		}
		reads += stale.Reads
		rounding := int64(lag) / 500 // of the histogram
		if oldest := *stale.AgeNS.Max; oldest > int64(lag)+rounding || oldest < int64(lag)/2 {
			t.Errorf("step %d: the oldest is %v behind, want about %v and not more", i, time.Duration(oldest), lag)
		}
	}
	// Every other op is a read, but for those at the end that were not sent in time.
	if want := steps[0].Ledger.OK/2 + steps[1].Ledger.OK/2; reads < want-2 || reads > want+2 {
		t.Errorf("%d reads judged, want %d", reads, want)
	}
	// The replica catches up, which the reading back waits for: nothing is lost.
	writes, err := FindWrites(t.Context(), s.History, s.Clients, patient())
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(results.Writes{Acknowledged: service.acked}, writes); diff != "" {
		t.Errorf("writes (-want +got)\n%s", diff)
	}
}

func TestNothingIsStaleWithoutLag(t *testing.T) {
	_, steps := offer(t, &lagging{lag: -1}, likes{}, nil)
	for i, step := range steps {
		if step.Stale == nil || step.Stale.Reads == 0 || step.Stale.Stale != 0 {
			t.Errorf("step %d: %+v", i, step.Stale)
		}
	}
}

// Writes that a failover takes back are found, and so are those that took effect
// although their answer did not say so.
func TestWritesThatAFailoverLoses(t *testing.T) {
	service := &lagging{lag: -1, failover: 60}
	s, _ := offer(t, service, likes{unsure: true}, nil)
	writes, err := FindWrites(t.Context(), s.History, s.Clients, patient())
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

// A target that is gone when the records are to be read back leaves them unread;
// patience ends.
func TestRecordsThatCannotBeReadBack(t *testing.T) {
	service := &lagging{lag: -1}
	server := httptest.NewServer(service)
	clients := clientsOf(t, server.URL)
	server.Close()
	how := driver.ReadBack{Timeout: time.Second, Patience: 50 * time.Millisecond, Pause: 10 * time.Millisecond}
	found, err := clients.Versions(t.Context(), map[string]int64{"/a": 2, "/b": 3}, how)
	if err != nil || len(found) != 0 {
		t.Errorf("%v, %v", found, err)
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := clients.Versions(ended, map[string]int64{"/a": 2}, how); err == nil {
		t.Error("a run that was ended went on reading back")
	}
}

// cellDir is the directory of a cell in a run of its own.
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

// What is done to a target during a step is among its events, by time, and in the
// timeline.
func TestWhatIsDoneDuringAStep(t *testing.T) {
	dir := cellDir(t)
	rows, err := dir.CreateTimeline()
	if err != nil {
		t.Fatal(err)
	}
	_, steps := offer(t, &lagging{lag: -1}, likes{}, func(s *Stepper) {
		s.timeline = &timeline{rows: rows}
		s.During = func(ctx context.Context, start time.Time) []targets.Event {
			<-ctx.Done() // it ends with the step
			return []targets.Event{
				{UnixNS: start.Add(500 * time.Millisecond).UnixNano(), Node: "db-2", Text: "second"},
				{UnixNS: start.Add(200 * time.Millisecond).UnixNano(), Node: "db-1", Text: "first"},
			}
		}
	})
	if err := rows.Close(); err != nil {
		t.Fatal(err)
	}
	for i, step := range steps {
		if len(step.Events) != 2 || step.Events[0].Text != "db-1: first" || step.Events[1].Text != "db-2: second" {
			t.Errorf("step %d: events %+v", i, step.Events)
		}
	}
	text, err := os.ReadFile(dir.TimelinePath())
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "db-1: first; db-2: second"); n != 2 {
		t.Errorf("%d rows of the timeline have the events, want one per step:\n%s", n, text)
	}
}
