package workloads

import "time"

// Journeys is implemented by workloads whose ops come in journeys. A journey is a sequence of ops of one user, who
// thinks between them. A schedule gives the begins of journeys. A later op of a journey is due when the user has got
// the previous answer and has thought. So the ops of a journey do not depend on the answers of the target, only their
// times do.
//
// The methods are pure, and safe for concurrent use.
type Journeys interface {
	// Journey returns the position of the first op of the n-th journey and its number of ops, at least 1. The next journey
	// follows without a gap.
	Journey(n uint64) (first uint64, ops int)
	// Think returns the think time of the user before op n, which is not the first of its journey.
	Think(n uint64) time.Duration
	// Shape returns the mean number of ops of a journey, and the longest time that the user of a journey thinks in sum.
	Shape() (ops float64, longest time.Duration)
}

// JourneyOf returns the n-th journey of a workload. Without Journeys, each op is a journey.
func JourneyOf(w Workload, n uint64) (first uint64, ops int) {
	if v, ok := w.(Journeys); ok {
		return v.Journey(n)
	}
	return n, 1
}

// ShapeOf returns the mean number of ops of a journey, and the longest time that a user thinks in a journey. A rate of
// ops divided by the mean number is the rate of a schedule for the workload.
func ShapeOf(w Workload) (ops float64, longest time.Duration) {
	if v, ok := w.(Journeys); ok {
		return v.Shape()
	}
	return 1, 0
}
