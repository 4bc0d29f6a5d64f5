package results

import (
	"maps"
	"slices"
)

// PreviousStage returns the index of the cell that cell i is compared with: the nearest earlier cell of another stage
// with the same workload, objective, driver, engines and varied knobs; -1 = none.
func PreviousStage(cells []Cell, i int) int {
	c, varied := cells[i], VariedKnobs(cells)
	for j := i - 1; j >= 0; j-- {
		e := cells[j]
		sameKnobs := !slices.ContainsFunc(varied, func(name string) bool { return e.Knobs[name] != c.Knobs[name] })
		if e.Stage != c.Stage && e.Workload == c.Workload && e.SLO == c.SLO && e.Driver == c.Driver &&
			Agree(e.Engines, c.Engines) && sameKnobs {
			return j
		}
	}
	return -1
}

// Agree reports whether two maps have equal values for the keys that both have. So a stage that adds roles is still
// comparable.
func Agree(a, b map[string]string) bool {
	for key, value := range a {
		if other, both := b[key]; both && other != value {
			return false
		}
	}
	return true
}

// VariedKnobs lists the knobs that have more than one value within one stage. Differences between stages do not
// count: a stage may have hosts that the earlier one lacks.
func VariedKnobs(cells []Cell) []string {
	type knob struct{ stage, name string }
	first, varied := map[knob]string{}, map[string]bool{}
	for _, c := range cells {
		for name, value := range c.Knobs {
			k := knob{c.Stage, name}
			if other, seen := first[k]; seen && other != value {
				varied[name] = true
			}
			first[k] = value
		}
	}
	return slices.Sorted(maps.Keys(varied))
}
