package pace_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
)

// threes is a workload of journeys with three ops and think times of a second. If exits is true, the last op of each
// logs out.
type threes struct{ exits bool }

func (threes) Name() string { return "threes" }
func (threes) Users() int   { return 1 }
func (w threes) Op(n uint64) workloads.Op {
	return workloads.Op{Index: n, Login: w.exits && n%3 == 0, Logout: w.exits && n%3 == 2}
}
func (threes) Journey(n uint64) (first uint64, ops int)    { return 3 * n, 3 }
func (threes) Think(uint64) time.Duration                  { return time.Second }
func (threes) Shape() (ops float64, longest time.Duration) { return 3, 2 * time.Second }

// single is a workload without journeys.
type single struct{}

func (single) Name() string           { return "single" }
func (single) Users() int             { return 0 }
func (single) Op(uint64) workloads.Op { return workloads.Op{} }

// due is an op and its time in milliseconds.
type due struct {
	Op uint64
	At int64
}

func planned(v pace.Journeys, d time.Duration) (all []due) {
	for op, at := range v.Planned(d) {
		all = append(all, due{op, at.Milliseconds()})
	}
	return all
}

// TestJourneysInProgress checks that a step begins with the journeys that began before it, and ends while journeys go
// on.
func TestJourneysInProgress(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		workload workloads.Workload
		want     []due
	}{
		"journeys": {threes{}, []due{
			{32, 0},               // began 2 s before the step
			{34, 250}, {35, 1250}, // 0.75 s before it
			{36, 500}, {37, 1500}, // in it
			// The next journey begins at 1.75 s, after the end of the step.
		}},
		"journeys that log out": {threes{exits: true}, []due{{34, 250}, {36, 500}, {37, 1500}}},
		"no journeys":           {single{}, []due{{10, 0}, {11, 1250}}},
	} {
		v := pace.NewJourneys(test.workload, 10, constant(t, 0.8))
		if diff := cmp.Diff(test.want, planned(v, 1600*time.Millisecond)); diff != "" {
			t.Errorf("%s (-want +got)\n%s", name, diff)
		}
	}
}

// TestJourneysAreStationary checks that each second of a step has the same number of ops on average, and that the rate
// of ops is that of the journeys times their mean length.
func TestJourneysAreStationary(t *testing.T) {
	t.Parallel()
	const rate, seeds = 50, 40
	var seconds [6]float64
	for seed := range uint64(seeds) {
		journeys := pace.NewJourneys(threes{}, 0, poisson(t, rate, seed))
		for _, at := range journeys.Planned(time.Duration(len(seconds)) * time.Second) {
			seconds[at/time.Second]++
		}
	}
	for i, n := range seconds {
		// The ops of a second belong to different journeys, so their number has a Poisson distribution.
		if want := 3.0 * rate * seeds; math.Abs(n-want) > 3.3*math.Sqrt(want) {
			t.Errorf("second %d has %v ops: want about %v", i, n, want)
		}
	}
}

func TestJourneysSpan(t *testing.T) {
	t.Parallel()
	v := pace.NewJourneys(threes{}, 10, constant(t, 0.8))
	if first, n := v.Span(2 * time.Second); first != 36 || n != 6 {
		t.Errorf("%d ops from %d on: want the 6 of the two journeys that begin in the step, from 36 on", n, first)
	}
	if first, n := pace.NewJourneys(single{}, 10, constant(t, 1)).Span(5 * time.Second); first != 10 || n != 5 {
		t.Errorf("%d ops from %d on: want 5 from 10 on", n, first)
	}
	const want = "constant 0.8/s, journeys of 3 ops on average"
	if got := v.String(); got != want {
		t.Errorf("%q: want %q", got, want)
	}
}
