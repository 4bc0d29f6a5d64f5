// Package capacity decides which rates to offer in order to find the capacity
// of a system: the highest rate at which it meets its objective.
//
// It is pure: it measures nothing. The caller asks Next for a rate, measures a
// step at it, tells Observe how it went, and reads the Bracket when Next says
// that it is over.
//
// The search is geometric: up by Factor until a step fails (or down until one
// passes), then bisection at the geometric mean until the bracket is narrow,
// then a longer step to confirm the highest rate that passed. A rate that does
// not confirm becomes the upper end and the search goes on below it, so a lucky
// short step cannot make the answer too high; and a search step counts as failed
// only when it failed twice in a row, so one hiccup cannot make it too low. A
// confirmation has one try.
package capacity

import "math"

// Config sets how a search goes.
type Config struct {
	Start     float64 // first rate, requests/s
	Factor    float64 // growth, more than 1
	Precision float64 // the bracket is narrow when high/low <= 1+Precision
	Min       float64 // below it the capacity counts as 0
	Max       float64 // rates above it are not offered
	Steps     int     // bound on the number of search steps
	Confirms  int     // bound on the number of confirmations
}

// Purpose says what a step is for.
type Purpose string

// The purposes of the steps of a search.
const (
	Explore Purpose = "search"
	Confirm Purpose = "confirm"
)

// Search is the state of one search. It belongs to one goroutine.
type Search struct {
	config   Config
	low      float64 // highest rate that passed; 0 = none
	high     float64 // lowest rate that failed; 0 = none
	sure     float64 // highest rate that passed a confirmation
	passed   []float64
	steps    int
	confirms int
	doubt    bool // a confirmation failed: short steps are no longer trusted
	next     Purpose
	again    float64 // a rate that has failed once and is offered once more; 0 = none
}

// New returns a search that has not begun.
func New(c Config) *Search { return &Search{config: c} }

// Learn takes a rate that is known to pass before the search begins, from a step
// that was measured for another reason.
func (s *Search) Learn(rate float64) { s.note(rate, true, Explore) }

// Next returns the rate to offer and what for; ok is false when the search is
// over.
func (s *Search) Next() (rate float64, purpose Purpose, ok bool) {
	c := s.config
	if s.again > 0 {
		return s.again, s.next, true
	}
	s.next = Explore
	switch {
	case s.doubt:
		return s.nextSure()
	case s.narrow(s.low) || s.steps >= c.Steps:
		s.next = Confirm
		return s.low, Confirm, s.low > 0 && s.sure < s.low && s.confirms < c.Confirms
	case s.low == 0 && s.high == 0:
		return min(c.Start, c.Max), Explore, true
	case s.high == 0:
		return min(s.low*c.Factor, c.Max), Explore, true
	default:
		return s.between(s.low, c.Factor), Explore, true
	}
}

// nextSure goes on with long steps only.
func (s *Search) nextSure() (float64, Purpose, bool) {
	s.next = Confirm
	if s.narrow(s.sure) || s.confirms >= s.config.Confirms {
		return 0, "", false
	}
	return s.between(s.sure, math.Sqrt(s.config.Factor)), Confirm, true
}

// between is the rate to try below high: halfway to low on a logarithmic scale,
// or one factor down while nothing has passed.
func (s *Search) between(low, factor float64) float64 {
	if low == 0 {
		return max(s.high/factor, s.config.Min)
	}
	return math.Sqrt(low * s.high)
}

// narrow reports whether there is nothing left to explore above low.
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

// Observe takes the result of the step that Next asked for last.
func (s *Search) Observe(rate float64, met bool) {
	if !met && s.next == Explore && s.again == 0 {
		s.again = rate
		return
	}
	s.again = 0
	if s.next == Confirm {
		s.confirms++
	} else {
		s.steps++
	}
	s.note(rate, met, s.next)
}

// note moves the ends of the bracket.
func (s *Search) note(rate float64, met bool, purpose Purpose) {
	switch {
	case met && purpose == Confirm:
		s.sure = max(s.sure, rate)
		s.low = max(s.low, rate)
	case met:
		s.low = max(s.low, rate)
		s.passed = append(s.passed, rate)
	default:
		s.doubt = s.doubt || purpose == Confirm
		if s.high == 0 || rate < s.high {
			s.high = rate
		}
		// What passed at a rate that has now failed is no longer known to pass.
		s.low = s.sure
		for _, passed := range s.passed {
			if passed < s.high {
				s.low = max(s.low, passed)
			}
		}
	}
}

// Bracket returns the highest rate that met the objective and the lowest that
// did not; low is 0 when none did, high is 0 when none failed. Unless confirmed
// is true, the low end rests on short steps alone.
func (s *Search) Bracket() (low, high float64, confirmed bool) {
	if s.sure > 0 && s.doubt {
		return s.sure, s.high, true
	}
	return s.low, s.high, s.low > 0 && s.sure == s.low
}
