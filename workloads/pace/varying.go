package pace

import (
	"errors"
	"fmt"
	"math"
	"strings"
	"time"
)

// varying is a schedule whose rate moves. A process of one op per unit is stretched by the inverse of the integral of
// the rate: op n is at the first moment by which the integral has reached the time of op n in the process. With
// constant arrivals, the number of ops in any window is its integral, to within one op. With Poisson arrivals, it is
// a Poisson process with this rate (Cinlar: Introduction to Stochastic Processes, 1975, section 4.7).
type varying struct {
	text string
	unit Schedule // one op per second
	// ops returns the integral of the rate over the first seconds.
	ops func(seconds float64) float64
}

// At finds the time by bisection over whole nanoseconds. The grid does not depend on n, so the times never decrease,
// whatever the rounding of ops.
func (v varying) At(n uint64) time.Duration {
	unit := v.unit.At(n)
	if unit == forever {
		return forever
	}
	want := unit.Seconds()
	before, by := time.Duration(-1), time.Second
	for v.ops(by.Seconds()) < want {
		if by > forever/2 {
			return forever
		}
		before, by = by, 2*by
	}
	for by-before > 1 {
		middle := before + (by-before)/2
		if middle >= 0 && v.ops(middle.Seconds()) >= want {
			by = middle
		} else {
			before = middle
		}
	}
	return by
}

// Count estimates the number by the integral, and corrects it by the times of the ops.
func (v varying) Count(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	reached := forever
	if ns := v.ops(d.Seconds()) * 1e9; ns < float64(forever) {
		reached = time.Duration(ns)
	}
	n := v.unit.Count(reached)
	for v.At(n) < d {
		n++
	}
	for n > 0 && v.At(n-1) >= d {
		n--
	}
	return n
}

func (v varying) String() string { return v.text }

// poissonArrivals describes the arrivals of independent users.
func poissonArrivals(seed uint64) string { return fmt.Sprintf("poisson arrivals seed %d", seed) }

// Phase is a part of a schedule in which the rate moves linearly, in ops per second.
type Phase struct {
	Length   time.Duration
	From, To float64
}

// Phases returns the schedule of phases, one after the other, with the arrivals of independent users, and its length.
// It has no ops after the last phase if the rate is 0 then; otherwise it goes on with the last rate.
func Phases(phases []Phase, seed uint64) (Schedule, time.Duration, error) {
	unit, err := Poisson(1, seed)
	if err != nil || len(phases) == 0 {
		return nil, 0, errors.Join(err, errors.New("no phases"))
	}
	var pieces []piece
	var length time.Duration
	var text []string
	for _, p := range phases {
		if p.Length < ShortestTime || !(min(p.From, p.To) >= 0 && max(p.From, p.To) <= MaxRate) {
			return nil, 0, fmt.Errorf("phase %+v: want a length of %v or more, and 0 to %v ops per second", p, ShortestTime,
				float64(MaxRate))
		}
		pieces = append(pieces, piece{p.Length.Seconds(), p.From, p.To})
		length += p.Length
		text = append(text, fmt.Sprintf("%s/s to %s/s in %v", rateText(p.From), rateText(p.To), p.Length))
	}
	name := "phases " + strings.Join(append(text, poissonArrivals(seed)), ", ")
	return varying{text: name, unit: unit, ops: held(pieces)}, length, nil
}

// piece is a part of a schedule in which the rate moves linearly.
type piece struct {
	seconds  float64
	from, to float64 // ops per second
}

// ops returns the integral of the rate over the first seconds of the piece.
func (p piece) ops(seconds float64) float64 {
	return seconds * (p.from + (p.to-p.from)*seconds/p.seconds/2)
}

// held returns the integral of the rate of pieces, one after the other. After the last one its last rate is held.
func held(pieces []piece) func(float64) float64 {
	return func(seconds float64) (sum float64) {
		for _, p := range pieces {
			if seconds <= p.seconds {
				return sum + p.ops(seconds)
			}
			sum += p.ops(p.seconds)
			seconds -= p.seconds
		}
		return sum + seconds*pieces[len(pieces)-1].to
	}
}

// repeated returns the integral of the rate of pieces that are repeated for ever.
func repeated(pieces []piece) func(float64) float64 {
	once, period := held(pieces), 0.0
	for _, p := range pieces {
		period += p.seconds
	}
	all := once(period)
	return func(seconds float64) float64 {
		whole := math.Floor(seconds / period)
		return whole*all + once(seconds-whole*period)
	}
}

// sine returns the integral of a rate that moves around its mean, from the mean upwards.
func sine(mean, amplitude, period float64) func(float64) float64 {
	turn := 2 * math.Pi / period
	return func(seconds float64) float64 {
		return mean*seconds + amplitude/turn*(1-math.Cos(turn*math.Mod(seconds, period)))
	}
}
