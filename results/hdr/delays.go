package hdr

import (
	"time"

	"github.com/stagebench/stagebench/results"
)

// delays finds the ops that were slow only because of the client.
//
// A client that stalls delays more ops than those that it sends late. It also reads late what
// arrives during the stall, and then sends all overdue ops at once, so that they and the ops
// after them queue at the target. But in a system of queues, arrivals that are at most d late
// delay no departure by more than d (Baccelli et al., Synchronization and Linearity, 1992: such
// systems are nonexpansive). So of the response time of each op that was in the system, up to
// the longest lag may be the client's.
//
// A stall counts for all ops in flight from its begin until no more ops are in flight than at
// its begin. Time is divided into slots, so that the memory does not grow with the rate.
type delays struct {
	slots []slot
	slow  []slowOp
}

// slot is a short part of the step.
type slot struct {
	lag  int64 // longest lag of the ops that were dispatched in it, ns
	sent int32 // dispatched ops
	done int32 // ended ops
}

// slowOp is a success that was slower than the bound of its class.
type slowOp struct {
	class          string
	intended, done int64
	excess         int64 // ns above the bound
}

const (
	slotLength = int64(10 * time.Millisecond)
	// minLag is the least lag that counts as a stall. A bound that was missed by less than
	// this says nothing about the target either, but the verdict is not finer than that.
	minLag = int64(time.Millisecond)
	// maxSlow limits the memory. More slow ops remain slow, whatever the client did.
	maxSlow = 1 << 20
)

// record adds an op that was dispatched. Bound is the largest response time that meets the
// objective.
func (d *delays) record(o results.Outcome, bound int64) {
	at := d.at(o.Dispatched)
	at.sent++
	at.lag = max(at.lag, o.Lag())
	d.at(o.Done).done++
	if excess := o.Response() - bound; o.Fate == results.OK && excess > 0 && len(d.slow) < maxSlow {
		d.slow = append(d.slow, slowOp{o.Class, o.Intended, o.Done, excess})
	}
}

func (d *delays) at(ns int64) *slot {
	n := int(max(ns, 0) / slotLength)
	for len(d.slots) <= n {
		d.slots = append(d.slots, slot{})
	}
	return &d.slots[n]
}

// excused returns the number of slow ops of each class that would have met their bound
// without the delay that the client may have caused.
func (d *delays) excused() map[string]int64 {
	excused := map[string]int64{}
	caused := d.caused()
	for _, op := range d.slow {
		var longest int64
		for n := max(op.intended, 0) / slotLength; n <= op.done/slotLength; n++ {
			longest = max(longest, caused[n])
		}
		if op.excess <= longest {
			excused[op.class]++
		}
	}
	return excused
}

// caused returns the longest delay that the client may have caused to an op in flight, by slot.
func (d *delays) caused() []int64 {
	caused := make([]int64, len(d.slots))
	inFlight := make([]int64, len(d.slots)+1) // at the begin of each slot
	for n, s := range d.slots {
		inFlight[n+1] = inFlight[n] + int64(s.sent) - int64(s.done)
	}
	var active, usual int64 // the delay that is not yet over, and the ops in flight before it
	for n, s := range d.slots {
		if s.lag >= minLag {
			begin := max(0, n-int((s.lag+slotLength-1)/slotLength))
			if active == 0 {
				usual = max(1, inFlight[begin])
			}
			active = max(active, s.lag)
			for b := begin; b < n; b++ {
				caused[b] = max(caused[b], active)
			}
		}
		caused[n] = max(caused[n], active)
		if inFlight[n+1] <= usual {
			active = 0
		}
	}
	return caused
}
