package table

import (
	"cmp"
	"maps"
	"slices"

	"github.com/stagebench/stagebench/results"
)

// demandRow is a cell with the demand of the tier that binds it, and of the next one.
type demandRow struct {
	results.Cell
	role, next string
}

// tolerated is the largest difference between peak and bound that needs no explanation.
const tolerated = 0.10

// Demand shows what a request costs the tier that binds each cell, and the next tier. It has no rows if the run
// measured no demand.
func Demand(run results.Run) Table {
	var rows []demandRow
	for _, c := range byWorkload(run.Cells) {
		roles := slices.SortedFunc(maps.Keys(c.Demand), func(a, b string) int {
			return cmp.Or(cmp.Compare(c.Demand[a].BoundRPS, c.Demand[b].BoundRPS), cmp.Compare(a, b))
		})
		if len(roles) == 0 {
			continue
		}
		r := demandRow{Cell: c, role: roles[0]}
		// Several roles on one host have one bound: the one that costs most binds.
		for _, role := range roles {
			d := c.Demand[role]
			switch {
			case d.Host == c.Demand[roles[0]].Host && d.AtPeak > c.Demand[r.role].AtPeak:
				r.role = role
			case d.Host != c.Demand[roles[0]].Host && r.next == "":
				r.next = role
			}
		}
		rows = append(rows, r)
	}
	demand := func(of func(results.Demand) float64) func(demandRow) Cell {
		return func(r demandRow) Cell {
			if seconds := of(r.Cell.Demand[r.role]); seconds > 0 {
				return Nanoseconds(int64(seconds * 1e9))
			}
			return Blank()
		}
	}
	return newTable("Demand", []column[demandRow]{
		identifying("stage", func(r demandRow) Cell { return Text(r.Stage) }),
		identifying("workload", func(r demandRow) Cell { return Text(r.Workload) }),
		words("tier", "", func(r demandRow) Cell { return Text(r.role) }),
		numbers("CPU ms at\nreference", "cpu_at_reference_ns",
			demand(func(d results.Demand) float64 { return d.AtReference })),
		numbers("near\ncapacity", "cpu_at_capacity_ns", demand(func(d results.Demand) float64 { return d.AtCapacity })),
		numbers("at\npeak", "cpu_at_peak_ns", demand(func(d results.Demand) float64 { return d.AtPeak })),
		numbers("bound\nrps", "bound_rps", demandRow.bound),
		numbers("peak\nrps", "peak_rps", func(r demandRow) Cell { return Rate(r.PeakRPS) }),
		words("next\ntier", "next_tier", func(r demandRow) Cell { return textOrNothing(r.next) }),
		numbers("bound\nrps", "next_bound_rps", func(r demandRow) Cell {
			if r.next == "" {
				return Cell{}
			}
			return Rate(r.Cell.Demand[r.next].BoundRPS)
		}),
	}, rows, "tier: the one that binds; CPU ms: what one request costs all its nodes, at the reference rate, near the "+
		"capacity and at the peak; bound: the rate at which a host of the tier would use its whole budget, by its "+
		"demand at the peak")
}

// bound is the bound of the tier. If it is not near the peak, the cell says why.
func (r demandRow) bound() Cell {
	d := r.Cell.Demand[r.role]
	cell := Rate(d.BoundRPS)
	if r.PeakRPS > 0 && r.PeakRPS < (1-tolerated)*d.BoundRPS {
		return cell.With("the peak is lower by more than " + percent(tolerated) + ": no host used its whole budget, so " +
			"something else than the CPU of a tier limits the peak")
	}
	return cell
}
