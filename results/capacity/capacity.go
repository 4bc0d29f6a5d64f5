// Package capacity decides which rates to offer in order to find the capacity
// of a system: the highest rate at which it meets its objective.
//
// It is pure: it measures nothing. The caller asks Next for a rate, measures a
// step at this rate, and reports the result with Observe. When Next returns
// false, the caller reads the Bracket.
//
// The search is geometric. It multiplies the rate by Factor until a step fails,
// or divides until one passes. It then bisects at the geometric mean until the
// bracket is narrow. Finally a longer step confirms the highest rate that passed.
//
// Two rules protect the result from noise. If a confirmation fails, its rate
// becomes the upper end and the search continues below it: a lucky short step
// cannot make the result too high. A search step counts as failed only when it
// fails twice in a row: one hiccup cannot make the result too low. A confirmation
// is not repeated.
package capacity

import "math"

// Config holds the parameters of a search.
type Config struct {
	Start     float64 // first rate, requests/s
	Factor    float64 // growth, more than 1
	Precision float64 // the bracket is narrow when high/low <= 1+Precision
	Min       float64 // lowest rate; if it fails, the capacity is 0
	Max       float64 // rates above it are not offered
	Steps     int     // bound on the number of search steps
	Confirms  int     // bound on the number of confirmations
}

// Purpose is the reason for a step.
type Purpose string

// The purposes of the steps of a search.
const (
	Explore Purpose = "search"
	Confirm Purpose = "confirm"
)

// Search is the state of one search. It belongs to one goroutine.
type Search struct {
	config Config
	low    float64 // highest rate that passed; 0 = none
	high   float64 // lowest rate that failed; 0 = none
	// confirmed is the highest rate that passed a confirmation; 0 = none.
	confirmed   float64
	passed      []float64
	steps       int
	confirms    int
	confirmOnly bool // a confirmation failed, so short steps are no longer trusted
	next        Purpose
	retry       float64 // rate of a step that failed once and is repeated; 0 = none
}

// New returns a search that has not begun.
func New(c Config) *Search { return &Search{config: c} }

// Learn records that a rate passed in a step outside the search. Call it before
// the first Next.
func (s *Search) Learn(rate float64) { s.note(rate, true, Explore) }

// Next returns the rate and the purpose of the next step; ok is false when the
// search is over.
func (s *Search) Next() (rate float64, purpose Purpose, ok bool) {
	c := s.config
	if s.retry > 0 {
		return s.retry, s.next, true
	}
	s.next = Explore
	switch {
	case s.confirmOnly:
		return s.nextConfirmation()
	case s.narrow(s.low) || s.steps >= c.Steps:
		s.next = Confirm
		return s.low, Confirm, s.low > 0 && s.confirmed < s.low && s.confirms < c.Confirms
	case s.low == 0 && s.high == 0:
		return min(c.Start, c.Max), Explore, true
	case s.high == 0:
		return min(s.low*c.Factor, c.Max), Explore, true
	default:
		return s.between(s.low, c.Factor), Explore, true
	}
}

// nextConfirmation continues the search with confirmations only.
func (s *Search) nextConfirmation() (float64, Purpose, bool) {
	s.next = Confirm
	if s.narrow(s.confirmed) || s.confirms >= s.config.Confirms {
		return 0, "", false
	}
	return s.between(s.confirmed, math.Sqrt(s.config.Factor)), Confirm, true
}

// between returns the geometric mean of low and high, or high/factor if low is 0.
func (s *Search) between(low, factor float64) float64 {
	if low == 0 {
		return max(s.high/factor, s.config.Min)
	}
	return math.Sqrt(low * s.high)
}

// narrow reports whether the bracket from low to high is narrow enough to end the search.
func (s *Search) narrow(low float64) bool {
	switch {
	case s.high == 0:
		return low >= s.config.Max
	case low == 0:
		return s.high <= s.config.Min
	default:
		return s.high/low <= 1+s.config.Precision
	}
}

// Observe records whether the step of the last Next met the objective.
func (s *Search) Observe(rate float64, met bool) {
	if !met && s.next == Explore && s.retry == 0 {
		s.retry = rate
		return
	}
	s.retry = 0
	if s.next == Confirm {
		s.confirms++
	} else {
		s.steps++
	}
	s.note(rate, met, s.next)
}

// note updates the ends of the bracket.
func (s *Search) note(rate float64, met bool, purpose Purpose) {
	switch {
	case met && purpose == Confirm:
		s.confirmed = max(s.confirmed, rate)
		s.low = max(s.low, rate)
	case met:
		s.low = max(s.low, rate)
		s.passed = append(s.passed, rate)
	default:
		s.confirmOnly = s.confirmOnly || purpose == Confirm
		if s.high == 0 || rate < s.high {
			s.high = rate
		}
		// Earlier passes at or above the failed rate no longer count.
		s.low = s.confirmed
		for _, passed := range s.passed {
			if passed < s.high {
				s.low = max(s.low, passed)
			}
		}
	}
}

// Bracket returns the highest rate that met the objective (0 = none) and the
// lowest rate that missed it (0 = none). If confirmed is false, only short steps
// passed at the low end.
func (s *Search) Bracket() (low, high float64, confirmed bool) {
	if s.confirmed > 0 && s.confirmOnly {
		return s.confirmed, s.high, true
	}
	return s.low, s.high, s.low > 0 && s.confirmed == s.low
}
