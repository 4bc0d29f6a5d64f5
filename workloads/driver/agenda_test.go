package driver

import (
	"math"
	"testing"
	"time"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
)

// pairs is a workload of journeys with two ops and a second between them.
type pairs struct{}

func (pairs) Name() string                                { return "pairs" }
func (pairs) Users() int                                  { return 1 }
func (pairs) Op(n uint64) workloads.Op                    { return workloads.Op{Index: n} }
func (pairs) Journey(n uint64) (first uint64, ops int)    { return 2 * n, 2 }
func (pairs) Think(uint64) time.Duration                  { return time.Second }
func (pairs) Shape() (ops float64, longest time.Duration) { return 2, time.Second }

// TestAgenda follows an agenda with a journey that is in progress, two that begin, and one that is cut off.
func TestAgenda(t *testing.T) {
	t.Parallel()
	schedule, err := pace.Constant(0.5) // -1 s, 1 s, 3 s
	if err != nil {
		t.Fatal(err)
	}
	plan := Plan{Workload: pairs{}, Schedule: schedule, Duration: 3500 * time.Millisecond}
	a := newAgenda(plan)
	second := int64(time.Second)
	take := func(wantAt int64, wantOp uint64) dueOp {
		t.Helper()
		at, more := a.next()
		if !more || at != wantAt {
			t.Fatalf("the next op is due at %d, %v: want %d", at, more, wantAt)
		}
		a.take()
		d := a.dispatch()
		if d.op != wantOp || d.intended != wantAt {
			t.Fatalf("%+v: want op %d at %d", d, wantOp, wantAt)
		}
		return d
	}
	a.settle(take(0, 1), second/2, true) // the second op of the journey in progress: it ends
	first := take(second, 2)
	if at, more := a.next(); !more || at != 3*second {
		t.Errorf("with an op in flight, the next one is due at %d, %v: want the next journey", at, more)
	}
	a.settle(first, second+second/5, true) // its user thinks until 2.2 s
	if len(a.changed) != 1 {
		t.Error("nobody was told about an op that is due before the next journey")
	}
	<-a.changed
	a.settle(take(2*second+second/5, 3), 2*second+second/2, true)
	last := take(3*second, 4)
	if at, more := a.next(); !more || at != math.MaxInt64 {
		t.Errorf("the next op is due at %d, %v: want it to depend on the op in flight", at, more)
	}
	a.settle(last, 3*second+second/5, true) // the end of the schedule comes before the next op
	if len(a.changed) != 1 {
		t.Error("nobody was told that there is no further op")
	}
	if _, more := a.next(); more {
		t.Error("there is a further op")
	}
	if unsent := a.unsent(int64(plan.Duration)); len(unsent) > 0 {
		t.Errorf("unsent ops %+v", unsent)
	}
	v := a.count(plan)
	if v.Begun != 2 || v.Joined != 1 || v.Ended != 2 || v.GivenUp != 0 || v.PlannedOps != 4 || v.NotDue != 0 {
		t.Errorf("journeys %+v", *v)
	}
}

// TestAgendaUnsent ends a run while one op is ready, one user thinks and one journey has not begun.
func TestAgendaUnsent(t *testing.T) {
	t.Parallel()
	schedule, err := pace.Constant(1)
	if err != nil {
		t.Fatal(err)
	}
	plan := Plan{Workload: pairs{}, Schedule: schedule, Duration: 10 * time.Second}
	a := newAgenda(plan)
	a.take() // op 1 of the journey in progress, at 0
	a.settle(a.dispatch(), 0, true)
	a.take() // op 2 at 0
	a.settle(a.dispatch(), 5, true)
	a.take() // op 3 or 4 at about 1 s
	window := time.Second + 100
	var ops []uint64
	for _, d := range a.unsent(int64(window)) {
		ops = append(ops, d.op)
	}
	if len(ops) != 2 || ops[0] != 4 || ops[1] != 3 || a.scheduled != 4 {
		t.Errorf("unsent %v of %d ops: want 4, which was ready, and 3, whose user thinks; of 4", ops, a.scheduled)
	}
	if v := a.count(plan.until(window)); v.PlannedOps != 4 || v.NotDue != 0 || v.Begun != 2 {
		t.Errorf("journeys %+v", *v)
	}
}
