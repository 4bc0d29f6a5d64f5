package pace

import (
	"slices"
	"strings"
	"time"
)

// Kind is a kind of shape.
type Kind struct {
	Name string
	// Default is the shape with all settings of its own, at their defaults. All kinds whose rate moves have arrivals, too.
	Default string
	Doc     string // one line

	// The settings that are rates and those that are times, with their defaults. Shape.rates, and Shape.times have their
	// values in this order.
	rates, times []setting
	alone        bool // its rates are all that it needs; otherwise they are combined with the given rate
	// ops returns the integral of the rate over the first seconds of a schedule; nil = the rate does not move.
	ops func(s Shape, rate, seconds float64) func(float64) float64
}

// setting is the name of a setting and its default value.
type setting struct{ name, value string }

// arrivals is a setting of all kinds whose rate moves.
const arrivals = "arrivals"

// Kinds lists the kinds of shapes.
func Kinds() []Kind {
	kinds := []Kind{
		{Name: "poisson", Doc: "one rate, and the arrivals of independent users"},
		{Name: "constant", Doc: "one rate, evenly spaced"},
		{
			Name: "step", Doc: "equal parts of the duration, each with a rate of its own",
			rates: []setting{{"rates", "x1/x2/x3"}}, alone: true,
			ops: func(s Shape, _, seconds float64) func(float64) float64 {
				var pieces []piece
				for _, rate := range s.rates {
					pieces = append(pieces, piece{seconds / float64(len(s.rates)), rate, rate})
				}
				return held(pieces)
			},
		},
		{
			Name: "ramp", Doc: "from one rate to another over the duration, linearly",
			rates: []setting{{"from", "x0"}, {"to", "x2"}}, alone: true,
			ops: func(s Shape, _, seconds float64) func(float64) float64 {
				return held([]piece{{seconds, s.rates[0], s.rates[1]}})
			},
		},
		{
			Name: "sine", Doc: "around the given rate, first above it",
			rates: []setting{{"amplitude", "x0.5"}}, times: []setting{{"period", "10s"}},
			ops: func(s Shape, rate, _ float64) func(float64) float64 {
				return sine(rate, s.rates[0], s.times[0].Seconds())
			},
		},
		{
			Name: "burst", Doc: "the given rate, and a burst at the end of each period",
			rates: []setting{{"rate", "x5"}}, times: []setting{{"every", "10s"}, {"length", "1s"}},
			ops: func(s Shape, rate, _ float64) func(float64) float64 {
				every, burst := s.times[0], s.times[1]
				return repeated([]piece{
					{(every - burst).Seconds(), rate, rate}, {burst.Seconds(), s.rates[0], s.rates[0]},
				})
			},
		},
	}
	for i := range kinds {
		kinds[i].Default = kinds[i].Name
		var settings []string
		for _, s := range slices.Concat(kinds[i].rates, kinds[i].times) {
			settings = append(settings, s.name+"="+s.value)
		}
		if settings != nil {
			kinds[i].Default += ":" + strings.Join(settings, ",")
		}
	}
	return kinds
}

// KindNames lists the names of the kinds.
func KindNames() (names []string) {
	for _, k := range Kinds() {
		names = append(names, k.Name)
	}
	return names
}

// kindOf returns a kind by its name, the first one for "".
func kindOf(name string) (Kind, bool) {
	kinds := Kinds()
	i := slices.IndexFunc(kinds, func(k Kind) bool { return k.Name == name || name == "" })
	if i < 0 {
		return Kind{}, false
	}
	return kinds[i], true
}

// settings lists all settings.
func (k Kind) settings() []setting {
	if k.ops == nil {
		return nil
	}
	return slices.Concat(k.rates, k.times, []setting{{arrivals, "poisson"}})
}

// ShortestTime is the shortest time in a shape, and the shortest length of a phase.
const ShortestTime = time.Millisecond
