package results

import (
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// SLO is a service level objective: at most 1 % of the ops have a response time
// above the bound, where failures count as infinitely slow, and at most
// ErrorRate of all ops fail.
type SLO struct {
	Bound     time.Duration            // p99 over all classes that are not in Classes
	Classes   map[string]time.Duration // p99 of single classes
	ErrorRate float64                  // share of scheduled ops, 0.001 = 0.1 %
}

// DefaultSLO returns the objective of the ladder: reads and small writes p99
// below 100 ms, uploads p99 below 1 s, errors below 0.1 %.
func DefaultSLO() SLO {
	uploads := map[string]time.Duration{"upload": time.Second}
	return SLO{Bound: 100 * time.Millisecond, Classes: uploads, ErrorRate: 0.001}
}

// ParseSLO parses the format of String: "p99<100ms,upload:p99<1s,errors<0.1%".
func ParseSLO(text string) (SLO, error) {
	slo := SLO{Bound: math.MaxInt64, Classes: map[string]time.Duration{}, ErrorRate: 1}
	seen := map[string]bool{}
	for _, term := range strings.Split(text, ",") {
		term = strings.TrimSpace(term)
		if err := slo.term(term); err != nil {
			return SLO{}, fmt.Errorf("slo %q: %w", term, err)
		}
		name, _, _ := strings.Cut(term, "<")
		if seen[name] {
			return SLO{}, fmt.Errorf("slo %q: more than one term for %s\nuse one", term, name)
		}
		seen[name] = true
	}
	return slo, nil
}

func (s *SLO) term(term string) error {
	name, value, found := strings.Cut(term, "<")
	if !found {
		return fmt.Errorf("want terms such as p99<100ms, upload:p99<1s or errors<0.1%%")
	}
	if name == "errors" {
		share, err := strconv.ParseFloat(strings.TrimSuffix(value, "%"), 64)
		if err != nil || !strings.HasSuffix(value, "%") || !(share >= 0 && share <= 100) {
			return fmt.Errorf("want a percentage such as errors<0.1%%")
		}
		s.ErrorRate = share / 100
		return nil
	}
	bound, err := time.ParseDuration(value)
	if err != nil || bound <= 0 {
		return fmt.Errorf("want a duration such as 100ms")
	}
	class, percentile, ofClass := strings.Cut(name, ":")
	switch {
	case ofClass && percentile == "p99" && class != "":
		s.Classes[class] = bound
	case !ofClass && class == "p99":
		s.Bound = bound
	default:
		return fmt.Errorf("want p99, CLASS:p99 or errors on the left of <")
	}
	return nil
}

// String returns the objective in the format that ParseSLO reads.
func (s SLO) String() string {
	var terms []string
	if s.Bound != math.MaxInt64 {
		terms = append(terms, "p99<"+s.Bound.String())
	}
	for _, class := range slices.Sorted(maps.Keys(s.Classes)) {
		terms = append(terms, class+":p99<"+s.Classes[class].String())
	}
	if s.ErrorRate < 1 {
		terms = append(terms, "errors<"+strconv.FormatFloat(s.ErrorRate*100, 'g', -1, 64)+"%")
	}
	return strings.Join(terms, ",")
}

// BoundOf returns the bound of a class in nanoseconds.
func (s SLO) BoundOf(class string) int64 {
	if bound, ok := s.Classes[class]; ok {
		return int64(bound)
	}
	return int64(s.Bound)
}

// Term is one part of an objective: of the ops that it applies to, at most the share Allowed may miss it.
type Term struct {
	Allowed float64
	slo     SLO
	class   string // "" = all classes that have no bound of their own
	errors  bool   // the term is that of the failures
}

// Terms returns the parts of the objective. A step meets the objective if it meets each of them.
func (s SLO) Terms() []Term {
	var terms []Term
	if s.Bound != math.MaxInt64 {
		terms = append(terms, Term{Allowed: 0.01, slo: s})
	}
	for _, class := range slices.Sorted(maps.Keys(s.Classes)) {
		terms = append(terms, Term{Allowed: 0.01, slo: s, class: class})
	}
	return append(terms, Term{Allowed: s.ErrorRate, slo: s, errors: true})
}

// Judge reports whether the term applies to an op, and whether the op missed it. An op whose session was lost counts
// neither as slow nor as failed.
func (t Term) Judge(o Outcome) (applies, missed bool) {
	failed := o.Fate.Failed() && !o.SessionLost
	if t.errors {
		return true, failed
	}
	own := ""
	if _, has := t.slo.Classes[o.Class]; has {
		own = o.Class
	}
	return own == t.class, failed || o.Fate == OK && o.Response() > t.slo.BoundOf(o.Class)
}
