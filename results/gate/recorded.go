package gate

import (
	"slices"

	"github.com/stagebench/stagebench/results"
)

// Pair is a block that was recorded before.
type Pair struct{ Base, Head Slice }

// Recorded returns the blocks of two runs: slices of the same cell and visit, with the same ops at the same rate.
// Unequal counts the slices of both runs without such a partner.
func Recorded(base, head results.Run) (pairs []Pair, unequal int) {
	var columns [][]Pair // by cell
	for _, b := range base.Cells {
		before := slicesOf(b)
		same := func(c results.Cell) bool {
			return c.Stage == b.Stage && c.Workload == b.Workload && c.Variant == b.Variant
		}
		var after []Slice
		if i := slices.IndexFunc(head.Cells, same); i >= 0 {
			after = slicesOf(head.Cells[i])
		}
		var column []Pair
		for i := range max(len(before), len(after)) {
			if i < len(before) && i < len(after) && before[i].Steady.OpsHash == after[i].Steady.OpsHash &&
				before[i].Steady.OfferedRPS == after[i].Steady.OfferedRPS {
				column = append(column, Pair{before[i], after[i]})
			} else {
				unequal++
			}
		}
		columns = append(columns, column)
	}
	// The first visit of each cell, then the second one, as they were measured.
	for i := 0; slices.ContainsFunc(columns, func(c []Pair) bool { return i < len(c) }); i++ {
		for _, c := range columns {
			if i < len(c) {
				pairs = append(pairs, c[i])
			}
		}
	}
	return pairs, unequal
}

// slicesOf returns the slices at a steady rate of a cell, each with the overload of the same visit.
func slicesOf(c results.Cell) (all []Slice) {
	var peaks []results.Step
	for _, s := range c.Steps {
		switch {
		case s.Repeated:
		case s.Purpose == "peak":
			peaks = append(peaks, s)
		case slices.Contains([]string{"reference", "fixed", "attack", "replay"}, s.Purpose):
			all = append(all, Slice{Steady: s})
		}
	}
	for i := range all {
		if i < len(peaks) {
			all[i].Burst = &peaks[i]
		}
		if i < len(c.Speeds) {
			all[i].Speed = c.Speeds[i]
		}
	}
	return all
}

// InAll returns the metrics that all slices have.
func InAll(metrics []Metric, pairs []Pair) []Metric {
	has := func(m Metric, s Slice) bool {
		_, ok := m.value(s)
		return ok
	}
	return slices.DeleteFunc(slices.Clone(metrics), func(m Metric) bool {
		return slices.ContainsFunc(pairs, func(p Pair) bool { return !has(m, p.Base) || !has(m, p.Head) })
	})
}
