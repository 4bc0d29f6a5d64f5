// Package pace holds the schedules: the intended start time of each op.
//
// A schedule is a pure function from the index of an op to its intended time.
// It never waits, reads no clock and knows nothing about the op itself. The
// driver sleeps until the intended time. A late driver does not move the
// intended times, so its lateness is always visible.
//
// Times are durations since the start of a step, in whole nanoseconds. Rates
// are ops per second. All schedules are safe for concurrent use. Callers may
// ask for ops in any order; increasing order is the fastest.
package pace

import (
	"fmt"
	"math"
	"strconv"
	"time"
)

// The rates that a schedule can have, in ops per second.
const (
	MinRate = 0.1
	MaxRate = 1_000_000
)

// forever is the time of an op whose time does not fit into a duration.
const forever = time.Duration(math.MaxInt64)

// Schedule fixes the intended time of every op.
type Schedule interface {
	// At returns the intended time of op n since the start. It never decreases
	// as n grows. It returns the largest duration for every op beyond that.
	At(n uint64) time.Duration
	// Count returns the number of ops with At(n) < d, which is the number of
	// ops in a step of duration d.
	Count(d time.Duration) uint64
	// String returns kind, rate and seed, for example "poisson 500/s seed 7".
	String() string
}

func checkRate(rate float64) error {
	if !(rate >= MinRate && rate <= MaxRate) { // NaN fails both comparisons, so it is refused too
		return fmt.Errorf("rate %s: want %s to %s ops per second", rateText(rate), rateText(MinRate), rateText(MaxRate))
	}
	return nil
}

func rateText(rate float64) string { return strconv.FormatFloat(rate, 'f', -1, 64) }
