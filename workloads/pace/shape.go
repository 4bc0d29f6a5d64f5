package pace

import (
	"cmp"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Shape says how the rate of a schedule moves, and how its ops are spaced. Parse makes it. The zero value is "poisson".
type Shape struct {
	text     string // as it was parsed
	kind     string
	even     bool      // ops are evenly spaced with respect to the rate; otherwise they are those of independent users
	relative bool      // rates are proportions
	rates    []float64 // requests per second, or proportions
	times    []time.Duration
}

// Parse parses a shape: the name of its kind and, after a colon, settings such as burst:rate=x5,every=10s. Settings
// that are left out have the default of the kind. A rate is in requests per second, or a proportion such as x2: then
// the rate is scaled so that its mean over the duration is the given rate. The setting arrivals is poisson or
// constant.
func Parse(text string) (Shape, error) {
	name, rest, _ := strings.Cut(text, ":")
	kind, known := kindOf(name)
	if !known || text == "" {
		return Shape{}, fmt.Errorf("want one of %s, or one with settings, such as %s",
			strings.Join(KindNames(), ", "), "burst:rate=x5,every=10s,length=1s")
	}
	s := Shape{text: text, kind: name, even: name == "constant"}
	values := map[string]string{}
	for _, of := range kind.settings() {
		values[of.name] = of.value
	}
	for given := range strings.FieldsFuncSeq(rest, func(r rune) bool { return r == ',' }) {
		key, value, _ := strings.Cut(given, "=")
		if _, known := values[key]; !known {
			return s, fmt.Errorf("%s has no setting %q: want %s", name, key, kind.Default)
		}
		values[key] = value
	}
	if kind.ops == nil {
		return s, nil
	}
	if err := s.parseRates(kind, values); err != nil {
		return s, err
	}
	if err := s.parseTimes(kind, values); err != nil {
		return s, err
	}
	return s, s.check(kind)
}

func (s *Shape) parseRates(kind Kind, values map[string]string) error {
	proportions := 0
	for _, of := range kind.rates {
		for text := range strings.SplitSeq(values[of.name], "/") {
			number, proportion := strings.CutPrefix(text, "x")
			rate, err := strconv.ParseFloat(number, 64)
			if err != nil || !(rate >= 0 && rate <= MaxRate) {
				return fmt.Errorf("%s is %q: want requests per second such as 500, or a proportion such as x2", of.name, text)
			}
			s.rates = append(s.rates, rate)
			if proportion {
				proportions++
			}
		}
	}
	s.relative = proportions > 0
	if s.relative && proportions < len(s.rates) {
		return fmt.Errorf("want only rates, or only proportions with an x")
	}
	return nil
}

func (s *Shape) parseTimes(kind Kind, values map[string]string) error {
	for _, of := range kind.times {
		d, err := time.ParseDuration(values[of.name])
		if err != nil || d < ShortestTime {
			return fmt.Errorf("%s is %q: want a duration such as %s", of.name, values[of.name], of.value)
		}
		s.times = append(s.times, d)
	}
	if kind := values[arrivals]; kind != "constant" && kind != "poisson" {
		return fmt.Errorf("%s is %q: want constant or poisson", arrivals, kind)
	}
	s.even = values[arrivals] == "constant"
	return nil
}

// check returns an error for settings that do not fit together.
func (s Shape) check(kind Kind) error {
	switch {
	case kind.alone && slices.Max(s.rates) == 0:
		return fmt.Errorf("all rates are 0")
	case s.kind == "burst" && s.times[1] >= s.times[0]:
		return fmt.Errorf("a burst of %v every %v: want shorter bursts", s.times[1], s.times[0])
	case s.kind == "sine" && s.relative && s.rates[0] > 1:
		return fmt.Errorf("an amplitude of more than x1 makes the rate negative")
	}
	return nil
}

// String returns the shape as Parse reads it.
func (s Shape) String() string { return cmp.Or(s.text, Kinds()[0].Name) }

// MarshalText implements encoding.TextMarshaler.
func (s Shape) MarshalText() ([]byte, error) { return []byte(s.String()), nil }

// NeedsRate reports whether the shape takes its rates, or some of them, from the rate that Schedule is given.
func (s Shape) NeedsRate() bool {
	kind, _ := kindOf(s.kind)
	return s.relative || !kind.alone
}

// Relative reports whether the mean of each schedule of the shape is the rate that Schedule is given.
func (s Shape) Relative() bool {
	kind, _ := kindOf(s.kind)
	return s.relative || kind.ops == nil
}

// Period returns the time after which the shape repeats, 0 if it does not.
func (s Shape) Period() time.Duration {
	if len(s.times) == 0 {
		return 0
	}
	return s.times[0]
}

// Schedule returns a schedule of the shape for a duration, and its mean rate in requests per second. Each op of the
// schedule is the begin of a journey, which has perJourney requests on average; without journeys that is 1.
func (s Shape) Schedule(
	rate, perJourney float64, d time.Duration, seed uint64,
) (schedule Schedule, mean float64, err error) {
	oneRate := func(rate float64) (Schedule, error) {
		if s.even {
			return Constant(rate)
		}
		return Poisson(rate, seed)
	}
	kind, _ := kindOf(s.kind)
	if kind.ops == nil {
		schedule, err = oneRate(rate / perJourney)
		return schedule, rate, err
	}
	if s.kind == "sine" && !s.relative && s.rates[0] > rate {
		return nil, 0, fmt.Errorf("schedule %s: an amplitude above the rate of %s/s makes the rate negative",
			s, rateText(rate))
	}
	unit, err := oneRate(1)
	if err != nil {
		return nil, 0, err
	}
	base := rate
	if s.relative {
		base = 1
	}
	ops := kind.ops(s, base, d.Seconds())
	mean, factor := ops(d.Seconds())/d.Seconds(), 1/perJourney
	if s.relative {
		mean, factor = rate, rate/mean/perJourney
	}
	if err := checkRate(mean / perJourney); err != nil {
		return nil, 0, fmt.Errorf("schedule %s: mean %w", s, err)
	}
	arrivals := "constant arrivals"
	if !s.even {
		arrivals = poissonArrivals(seed)
	}
	return varying{
		text: fmt.Sprintf("%s, mean %s/s over %v, %s", s, rateText(mean/perJourney), d, arrivals),
		unit: unit, ops: func(seconds float64) float64 { return factor * ops(seconds) },
	}, mean, nil
}
