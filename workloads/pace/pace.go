// Package pace holds the schedules: when each op is meant to happen.
//
// A schedule is a pure function from the position of an op to its intended
// time. It never waits, reads no clock and does not know what an op is: the
// driver sleeps until the time that it is told, and when it is late it is late
// against a time that does not move.
//
// Times are durations since the start of a step, in whole nanoseconds;
// rates are ops per second. All schedules are safe for concurrent use. Any op
// may be asked for at any time; asking in increasing order is the cheap way.
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

// forever is the time of an op that is further away than a duration can say.
const forever = time.Duration(math.MaxInt64)

// Schedule fixes the intended time of every op.
type Schedule interface {
	// At is the intended time of op n since the start. It never decreases as n
	// grows, and stays at the largest duration once it has reached it.
	At(n uint64) time.Duration
	// Count is the number of ops with At(n) < d: the ops of a step that lasts d.
	Count(d time.Duration) uint64
	// String shows kind, rate and seed: "poisson 500/s seed 7".
	String() string
}

func checkRate(rate float64) error {
	if !(rate >= MinRate && rate <= MaxRate) { // so written that NaN is refused too
		return fmt.Errorf("rate %s: want %s to %s ops per second", rateText(rate), rateText(MinRate), rateText(MaxRate))
	}
	return nil
}

func rateText(rate float64) string { return strconv.FormatFloat(rate, 'f', -1, 64) }
