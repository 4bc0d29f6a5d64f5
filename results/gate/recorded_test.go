package gate_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/gate"
)

// recordedRun returns a run with two cells of so many visits. The ops of each step depend on cell and visit.
func recordedRun(visits int) (r results.Run) {
	for _, stage := range []string{"single", "lb"} {
		c := results.Cell{Stage: stage, Workload: "read-heavy"}
		for n := range visits {
			s := slice(nil)
			s.Steady.Purpose, s.Steady.OpsHash, s.Steady.OfferedRPS = "reference", fmt.Sprint(stage, n), 100
			again := s.Steady
			again.Repeated = true
			peak := results.Step{Purpose: "peak", GoodputRPS: float64(1000 + n), Seconds: 1}
			c.Steps = append(c.Steps, results.Step{Purpose: "warmup"}, peak, results.Step{Purpose: "capacity"}, again, s.Steady)
			c.Speeds = append(c.Speeds, results.Speed{Compute: 1})
		}
		r.Cells = append(r.Cells, c)
	}
	return r
}

// Slices of two runs form a block if they are of the same cell and visit and have the same ops and rate.
func TestRecorded(t *testing.T) {
	base, head := recordedRun(3), recordedRun(2)
	pairs, unequal := gate.Recorded(base, head)
	if len(pairs) != 4 || unequal != 2 {
		t.Fatalf("%d pairs, %d without a partner: want 4 and 2", len(pairs), unequal)
	}
	var order []string
	for _, p := range pairs {
		order = append(order, p.Head.Steady.OpsHash)
		if p.Base.Steady.OpsHash != p.Head.Steady.OpsHash || p.Base.Burst == nil || p.Head.Speed.Compute != 1 {
			t.Errorf("%+v", p)
		}
	}
	if got := fmt.Sprint(order); got != "[single0 lb0 single1 lb1]" || pairs[2].Base.Burst.GoodputRPS != 1001 {
		t.Errorf("order %s, burst %v: want visit after visit, each with its own peak", got, pairs[2].Base.Burst.GoodputRPS)
	}
	head.Cells[0].Steps[4].OpsHash = "others"
	head.Cells[1].Steps[4].OfferedRPS = 200
	if pairs, unequal = gate.Recorded(base, head); len(pairs) != 2 || unequal != 4 {
		t.Errorf("%d pairs, %d without a partner: want 2 and 4, because ops and rate of two differ", len(pairs), unequal)
	}
	if pairs, _ = gate.Recorded(base, results.Run{}); len(pairs) != 0 {
		t.Errorf("%d pairs with a run without cells", len(pairs))
	}
	pairs, _ = gate.Recorded(recordedRun(1), recordedRun(1))
	pairs[1].Head.Steady.Nodes = nil
	if got := gate.InAll(gate.Metrics(), pairs); len(got) != 5 || got[0].Name != "p50" {
		t.Errorf("metrics %v: want all but cpu", got)
	}
}

// Gates that are drawn from blocks with a slowdown find it, and those from blocks without one do not. The spread of
// these blocks is that of their noise.
func TestDraw(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 5))
	var same, slower []gate.Pair
	for range 40 {
		base, head := noisy(random, 0.02, 0)
		same = append(same, gate.Pair{Base: base, Head: head})
		base, head = noisy(random, 0.02, 0.10)
		slower = append(slower, gate.Pair{Base: base, Head: head})
	}
	none, err := gate.Draw(gate.Metrics(), same, 59, true, 1)
	if err != nil || none.Regression != 0 || none.Pass != 59 || none.Gates != 59 || none.Blocks < 8 || none.Blocks > 10 {
		t.Errorf("no change: %+v, %v", none, err)
	}
	found, err := gate.Draw(gate.Metrics(), slower, 59, false, 1)
	if err != nil || found.Regression != 59 || found.Blocks != 12 {
		t.Errorf("+10 %%: %+v, %v", found, err)
	}
	p50 := gate.Metrics()[1]
	change, deviation := gate.Spread(p50, slower)
	if math.Abs(change-0.10) > 0.02 || math.Abs(deviation-0.02) > 0.01 {
		t.Errorf("the median changes by %v with a deviation of %v, want 0.10 and 0.02", change, deviation)
	}
}
