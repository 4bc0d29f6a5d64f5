package driver

import (
	"container/heap"
	"math"
	"sync"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads/pace"
)

// agenda knows which op is due next. It merges the begins of journeys, whose times the schedule fixes, with the later
// ops of journeys: such an op is due when the previous op of its journey is done and its user has thought. Waiting
// users are entries of a heap, and need no goroutine. Their number is bounded by the rate of journeys times their
// length.
//
// An op whose time is after the end of the schedule is not scheduled, and its journey is cut off.
//
// All methods but take are safe for concurrent use. Times are nanoseconds since time 0 of the run.
type agenda struct {
	journeys pace.Journeys
	all      uint64 // journeys that begin before the end
	earlier  uint64 // of these, the journeys that began before time 0
	end      int64
	// changed gets a value when the next op changes while take's caller waits for it.
	changed chan struct{}

	mu       sync.Mutex
	begun    uint64 // journeys whose first op became due
	thinking dueOps // later ops of journeys that are not due yet
	ready    []dueOp
	open     int // ops that are ready or in flight, and have more ops of their journey after them
	// Counts of the run so far.
	scheduled, joined, ended, givenUp int64
}

// dueOp is an op with its time.
type dueOp struct {
	op       uint64 // position in the workload
	left     int    // ops of the journey after it
	intended int64
	session  *session // of its journey; nil = that of its user
}

// newAgenda returns the agenda of a plan.
func newAgenda(p Plan) *agenda {
	a := &agenda{journeys: p.journeys(), end: int64(p.Duration), changed: make(chan struct{}, 1)}
	a.all, a.earlier = a.journeys.Count(p.Duration)
	for a.begun < a.earlier {
		if d := a.first(a.begun); d.left >= 0 && d.intended < a.end {
			a.thinking = append(a.thinking, d)
			a.joined++
		}
		a.begun++
	}
	heap.Init(&a.thinking)
	return a
}

// first returns the first op of a journey; left is negative if there is none.
func (a *agenda) first(journey uint64) dueOp {
	op, ops, at := a.journeys.Ops(journey)
	return dueOp{op: op, left: ops - 1, intended: int64(at)}
}

// next returns the time of the next op, which is far away if it depends on an op in flight. More is false if there is
// no next op.
func (a *agenda) next() (at int64, more bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	at = min(a.beginning(), a.thinking.first())
	return at, at < math.MaxInt64 || a.open > 0
}

// beginning returns the time of the next journey.
func (a *agenda) beginning() int64 {
	if a.begun == a.all {
		return math.MaxInt64
	}
	return int64(a.journeys.At(a.begun))
}

// take makes the next op ready: dispatch returns it. Call it at the time of the op.
func (a *agenda) take() {
	a.mu.Lock()
	defer a.mu.Unlock()
	var d dueOp
	if a.thinking.first() < a.beginning() {
		d = heap.Pop(&a.thinking).(dueOp)
	} else {
		d = a.first(a.begun)
		a.begun++
	}
	a.ready = append(a.ready, d)
	a.scheduled++
	if d.left > 0 {
		a.open++
	}
}

// dispatch returns the op that has been ready for the longest time. There must be one.
func (a *agenda) dispatch() dueOp {
	a.mu.Lock()
	defer a.mu.Unlock()
	d := a.ready[0]
	a.ready = a.ready[1:]
	return d
}

// settle continues the journey of an op that ended at done. With goOn = false, its user gives up.
func (a *agenda) settle(d dueOp, done int64, goOn bool) {
	if d.left == 0 {
		a.mu.Lock()
		a.ended++
		a.mu.Unlock()
		return
	}
	later := d
	later.op, later.left = d.op+1, d.left-1
	later.intended = done + int64(a.journeys.Think(later.op))
	a.mu.Lock()
	defer a.mu.Unlock()
	a.open--
	changed := a.open == 0
	switch {
	case !goOn:
		a.givenUp++
	case later.intended < a.end:
		changed = changed || later.intended < min(a.beginning(), a.thinking.first())
		heap.Push(&a.thinking, later)
	}
	if changed {
		select {
		case a.changed <- struct{}{}:
		default: // the caller of take is told already
		}
	}
}

// unsent returns the ops that were due before the end of the window and were not dispatched. Of a journey it has only
// the first such op: when the others would have been due is unknown. No op may be in flight, and no other call may
// follow but count.
func (a *agenda) unsent(window int64) []dueOp {
	all := a.ready
	for _, d := range a.thinking {
		if d.intended < window {
			all = append(all, d)
			a.scheduled++
		}
	}
	for ; a.begun < a.all && a.beginning() < window; a.begun++ {
		all = append(all, a.first(a.begun))
		a.scheduled++
	}
	return all
}

// count returns the counts of the journeys; nil for a workload without journeys. Call it after unsent.
func (a *agenda) count(p Plan) *results.Journeys {
	if !p.hasJourneys() {
		return nil
	}
	v := results.Journeys{Begun: int64(a.begun - a.earlier), Joined: a.joined, Ended: a.ended, GivenUp: a.givenUp}
	for range a.journeys.Planned(p.Duration) {
		v.PlannedOps++
	}
	v.NotDue = max(v.PlannedOps-a.scheduled, 0)
	return &v
}

// dueOps is a heap by intended time. Ops of the same time are in the order of their positions.
type dueOps []dueOp

// first returns the time of the first op.
func (h dueOps) first() int64 {
	if len(h) == 0 {
		return math.MaxInt64
	}
	return h[0].intended
}

func (h dueOps) Len() int { return len(h) }
func (h dueOps) Less(i, j int) bool {
	return h[i].intended < h[j].intended || h[i].intended == h[j].intended && h[i].op < h[j].op
}
func (h dueOps) Swap(i, j int) { h[i], h[j] = h[j], h[i] }

// Push implements heap.Interface.
func (h *dueOps) Push(d any) { *h = append(*h, d.(dueOp)) }

// Pop implements heap.Interface.
func (h *dueOps) Pop() any {
	last := len(*h) - 1
	d := (*h)[last]
	(*h)[last] = dueOp{} // frees its session
	*h = (*h)[:last]
	return d
}
