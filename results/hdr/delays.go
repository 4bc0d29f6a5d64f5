package hdr

import (
	"time"

	"github.com/stagebench/stagebench/results"
)

// delays finds the ops that missed their bound perhaps only because of the client.
//
// A client that does not run for a while delays more than the ops that it sends late. It reads
// late what arrives in this time, and then sends all overdue ops at once, so that they and the
// ops after them wait at the target. But in queues that are served in the order of arrival,
// arrivals that are at most d late delay no departure by more than d (Baccelli et al.,
// Synchronization and Linearity, 1992: such systems are nonexpansive). Servers that share
// their CPU among requests, or have a quota, can add a little to that.
//
// So a delay of the client excuses as much of the response time of all ops that waited or were
// in flight from its start until its backlog is gone: until no more ops wait or are in flight
// than on average before it.
//
// Time is divided into slots: 16 bytes for 10 ms, 6 MB for an hour, at any rate.
type delays struct {
	slots []slot
	slow  []slowOp
}

// slot is a short part of the step.
type slot struct {
	delay int64 // longest delay of the client that ended in it, ns
	due   int32 // ops whose intended time it contains
	done  int32 // ended ops
}

// slowOp is an op that was not sent, or a success that was slower than the bound of its class.
type slowOp struct {
	class          string
	unsent         bool
	intended, done int64
	excess         int64 // ns above the bound; of an unsent op, how long it was overdue
}

const (
	slotLength = int64(10 * time.Millisecond)
	// minDelay is the least delay that is considered. No verdict is exact to a millisecond.
	minDelay = int64(time.Millisecond)
	// usualSlots is the number of slots before a delay that give the usual number of ops.
	usualSlots = 20
	// maxWake bounds the time in which the backlog counts, in multiples of the delay. At 95 % of
	// its capacity, a target needs twenty times the length of a stall to catch up.
	maxWake = 20
	// maxSlow limits the memory. More slow ops are not excused.
	maxSlow = 1 << 20
)

// record adds an op. Bound is the largest response time that meets the objective. Failures are
// never excused: nobody knows how the target would have answered at another time.
func (d *delays) record(o results.Outcome, bound int64) {
	d.at(o.Intended).due++
	d.at(o.Done).done++
	excess := o.Response() - bound
	if o.Fate == results.Unsent {
		excess = o.Done - o.Intended
	} else {
		d.stall(results.Stall{AtNS: o.Dispatched - o.Lag(), LengthNS: o.Lag()})
	}
	if (o.Fate == results.OK || o.Fate == results.Unsent) && excess > 0 && len(d.slow) < maxSlow {
		d.slow = append(d.slow, slowOp{o.Class, o.Fate == results.Unsent, o.Intended, o.Done, excess})
	}
}

// stall adds a delay of the client.
func (d *delays) stall(s results.Stall) {
	end := d.at(s.AtNS + s.LengthNS)
	end.delay = max(end.delay, s.LengthNS)
}

func (d *delays) at(ns int64) *slot {
	n := int(max(ns, 0) / slotLength)
	for len(d.slots) <= n {
		d.slots = append(d.slots, slot{})
	}
	return &d.slots[n]
}

// excused returns the number of slow ops and of unsent ops of each class that would have met
// their bound without the delay that the client may have caused.
func (d *delays) excused() (slow, unsent map[string]int64) {
	slow, unsent = map[string]int64{}, map[string]int64{}
	caused, longest := d.caused()
	for _, op := range d.slow {
		if op.excess > longest {
			continue
		}
		for n := max(op.intended, 0) / slotLength; n <= op.done/slotLength; n++ {
			if caused[n] < op.excess {
				continue
			}
			if op.unsent {
				unsent[op.class]++
			} else {
				slow[op.class]++
			}
			break
		}
	}
	return slow, unsent
}

// caused returns the longest delay that the client may have caused to the ops of each slot, and
// the longest of all.
func (d *delays) caused() (caused []int64, longest int64) {
	caused = make([]int64, len(d.slots))
	present := make([]int64, len(d.slots)+1) // ops that wait or are in flight at the start of each slot
	for n, s := range d.slots {
		present[n+1] = present[n] + int64(s.due) - int64(s.done)
	}
	var active, usual, last int64 // the delay whose backlog remains, the usual number of ops, the last slot
	for n, s := range d.slots {
		if s.delay >= minDelay {
			first := max(0, n-int((s.delay+slotLength-1)/slotLength))
			if active == 0 {
				usual = mean(present[max(0, first-usualSlots) : first+1])
			}
			active = max(active, s.delay)
			last = max(last, int64(n)+maxWake*active/slotLength+1)
			for b := first; b < n; b++ {
				caused[b] = max(caused[b], s.delay)
			}
		}
		caused[n] = max(caused[n], active)
		longest = max(longest, active)
		if present[n+1] <= usual || int64(n) >= last {
			active = 0
		}
	}
	return caused, longest
}

// mean returns the mean, rounded up, at least 1.
func mean(counts []int64) int64 {
	var sum int64
	for _, c := range counts {
		sum += c
	}
	n := int64(len(counts))
	return max(1, (sum+n-1)/n)
}
