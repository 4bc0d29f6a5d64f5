package scorecard

import (
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/capacity"
)

// Sizing is a stage with the hosts of one tier in a number and a size.
type Sizing struct {
	Hosts int       // of the tier
	Units float64   // of each of them
	All   []float64 // sizes of all hosts of the stage, in units
	Cell  results.Cell

	// These are set by Compare, and Cell.Gain: the capacity divided by that of the first sizing, nil = one is unknown.

	Base      bool    // the others are compared with it
	BaseValid bool    // the figures of the first sizing are valid
	Hour      float64 // price of an hour of the hosts of the tier
	// Money is the price of a million requests at the capacity, with all hosts; nil = the capacity is unknown.
	Money *float64
}

// Compare compares sizings of one stage with the first one, and adds their prices.
func Compare(all []Sizing, p Prices) {
	first := estimate(all[0].Cell)
	for i := range all {
		s := &all[i]
		s.BaseValid = all[0].Cell.Valid
		s.Hour = float64(s.Hosts) * p.Hour(s.Units)
		own := estimate(s.Cell)
		if s.Base = i == 0; s.Cell.Error != "" {
			continue
		}
		if !s.Base && all[0].Cell.Error == "" && len(first.ByVisit) > 0 && len(own.ByVisit) > 0 {
			ratio := capacity.Ratio(own, first)
			s.Cell.Gain = &results.Gain{Over: "one host", Ratio: ratio.Value, Low: ratio.Low, High: ratio.High}
		}
		if s.Cell.CapacityRPS > 0 {
			_, money := p.PerMillion(s.All, s.Cell.CapacityRPS)
			s.Money = &money
		}
	}
}

// estimate returns what the visits of a cell say about its capacity.
func estimate(c results.Cell) capacity.Estimate {
	return capacity.Estimate{Interval: capacity.Interval{Value: c.CapacityRPS}, ByVisit: c.Repeats}
}
