package pace

import (
	"fmt"
	"iter"
	"time"

	"github.com/stagebench/stagebench/workloads"
)

// Journeys places the journeys of a workload in a step. The schedule gives their begins. A workload without journeys is
// one whose journeys are single ops.
//
// At the begin of a step, journeys are in progress, as if the workload had been sent before: those that began earlier,
// up to the longest possible journey, continue. Otherwise a step would begin with few ops, because a journey takes
// seconds and a step is often shorter. Nothing is known about the answers before the step, so their times count as 0.
type Journeys struct {
	Workload workloads.Workload
	First    uint64 // first journey in the workload
	Schedule Schedule
	lead     time.Duration // how long before the step the first journey begins
}

// NewJourneys returns the journeys of a step: the workload's journeys from first on.
func NewJourneys(w workloads.Workload, first uint64, s Schedule) Journeys {
	_, lead := workloads.ShapeOf(w)
	return Journeys{Workload: w, First: first, Schedule: s, lead: lead}
}

// String returns the schedule and, for a workload with journeys, their mean number of ops.
func (v Journeys) String() string {
	if ops, _ := workloads.ShapeOf(v.Workload); v.lead > 0 {
		return fmt.Sprintf("%v, journeys of %s ops on average", v.Schedule, rateText(ops))
	}
	return v.Schedule.String()
}

// At returns the time at which a journey begins, counted from 0. It is negative for a journey that began before the
// step.
func (v Journeys) At(journey uint64) time.Duration { return v.Schedule.At(journey) - v.lead }

// Count returns the number of journeys that begin before d, and of these the number that begin before the step.
func (v Journeys) Count(d time.Duration) (all, earlier uint64) {
	return v.Schedule.Count(v.lead + d), v.Schedule.Count(v.lead)
}

// Ops returns the ops of a journey, counted from 0: the position of the first op that takes place in the step, and the
// number of ops from there on. At is the time of this op if answers take no time. Ops is 0 if the journey ended before
// the step.
func (v Journeys) Ops(journey uint64) (first uint64, ops int, at time.Duration) {
	first, ops = workloads.JourneyOf(v.Workload, v.First+journey)
	if at = v.At(journey); at >= 0 {
		return first, ops, at
	}
	if v.Workload.Op(first + uint64(ops) - 1).Logout {
		ops--
	}
	for at < 0 && ops > 0 {
		first, ops = first+1, ops-1
		if ops > 0 {
			at += v.Think(first)
		}
	}
	return first, ops, at
}

// Planned returns the ops that are due before end if answers take no time, with their times. They come journey by
// journey, not in the order of their times.
func (v Journeys) Planned(end time.Duration) iter.Seq2[uint64, time.Duration] {
	return func(yield func(uint64, time.Duration) bool) {
		all, _ := v.Count(end)
		for journey := range all {
			op, left, at := v.Ops(journey)
			for left > 0 && at < end {
				if !yield(op, at) {
					return
				}
				if op, left = op+1, left-1; left > 0 {
					at += v.Think(op)
				}
			}
		}
	}
}

// Span returns the positions of the ops of all journeys that begin in a step that lasts for d: n ops from first on.
func (v Journeys) Span(d time.Duration) (first, n uint64) {
	all, earlier := v.Count(d)
	first, _ = workloads.JourneyOf(v.Workload, v.First+earlier)
	next, _ := workloads.JourneyOf(v.Workload, v.First+all)
	return first, next - first
}

// Think returns the think time before an op that is not the first of its journey.
func (v Journeys) Think(op uint64) time.Duration { return v.Workload.(workloads.Journeys).Think(op) }
