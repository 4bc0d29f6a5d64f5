package table

import (
	"fmt"
	"slices"

	"github.com/stagebench/stagebench/results"
)

// addConsistency adds what clients saw of stale answers and of lost writes to the
// ladder, where there is any row for which it was looked for or found. The shares
// and ages are those of the step at the reference rate, as the latencies are.
func addConsistency(t *Table, cells []results.Cell, at string) {
	looked := slices.ContainsFunc(cells, func(c results.Cell) bool { return c.Writes != nil })
	stale := slices.ContainsFunc(cells, func(c results.Cell) bool { s := staleOf(c); return s != nil && s.Stale > 0 })
	if !looked && !stale {
		return
	}
	columns := []Column{
		{Name: "stale\n" + at, Key: "stale_share", Align: Right},
		{Name: "age ms\np99", Key: "stale_age_p99_ns", Align: Right},
		{Name: "age ms\nmax", Key: "stale_age_max_ns", Align: Right},
		{Key: "stale_reads", For: Machines},
		{Key: "judged_reads", For: Machines},
		{Key: "ryw_violations", For: Machines},
	}
	if looked {
		columns = append(columns, Column{Name: "lost\nwrites", Key: "lost_writes", Align: Right}, Column{Key: "acknowledged_writes", For: Machines})
	}
	place := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Key == "errors_share" }) + 1
	t.Columns = slices.Insert(t.Columns, place, columns...)
	for i, c := range cells {
		row := staleCells(c)
		if looked {
			row = append(row, lostCells(c)...)
		}
		t.Rows[i] = slices.Insert(t.Rows[i], place, row...)
	}
	t.Legend = append(t.Legend, "stale: reads that showed less than what had been acknowledged before they were sent; age: for how long it had been")
	if looked {
		t.Legend = append(t.Legend, "lost writes: acknowledged, and not there when all was read back after the measurement")
	}
}

// addCache adds what the web tier found in the cache tier, where there is a row that
// has one, at the reference rate.
func addCache(t *Table, cells []results.Cell, at string) {
	has := func(c results.Cell) bool { return c.Error == "" && c.Reference != nil && c.Reference.Cache != nil }
	if !slices.ContainsFunc(cells, has) {
		return
	}
	place := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Key == "errors_share" }) + 1
	t.Columns = slices.Insert(t.Columns, place, Column{Name: "cache hits\n" + at, Key: "cache_hit_ratio", Align: Right}, Column{Key: "cache_reads", For: Machines})
	for i, c := range cells {
		row := []Cell{Blank(), Blank()}
		if has(c) {
			row = []Cell{Share(c.Reference.Cache.HitRatio()), Count(c.Reference.Cache.Hits + c.Reference.Cache.Misses)}
		}
		t.Rows[i] = slices.Insert(t.Rows[i], place, row...)
	}
	t.Legend = append(t.Legend, "cache hits: of the keys that the web tier asked the cache tier for, those that were there")
}

func staleOf(c results.Cell) *results.Stale {
	if c.Reference == nil || c.Error != "" {
		return nil
	}
	return c.Reference.Stale
}

func staleCells(c results.Cell) []Cell {
	s := staleOf(c)
	if s == nil {
		return make([]Cell, 6)
	}
	share := Share(s.Share())
	if s.RYWViolations > 0 {
		share = share.With(fmt.Sprintf("%s of %s stale reads were by the user whose own write they did not show", Count(s.RYWViolations).Text, Count(s.Stale).Text))
	}
	p99, longest := Blank(), Blank()
	if s.Stale > 0 {
		p99 = percentile(s.AgeNS.P99, s.AgeNS.Count, 0.99)
		if s.AgeNS.Max != nil {
			longest = Nanoseconds(*s.AgeNS.Max)
		}
	}
	return []Cell{share, p99, longest, Count(s.Stale), Count(s.Reads), Count(s.RYWViolations)}
}

func lostCells(c results.Cell) []Cell {
	if c.Writes == nil {
		return []Cell{Blank(), Blank()}
	}
	w := c.Writes
	lost := Count(w.Lost)
	if w.Conflicts > 0 {
		lost = lost.With(fmt.Sprintf("several primaries counted %s conflicts: rows that two had changed at a time, of which the later change won", Count(w.Conflicts).Text))
	}
	if w.Ambiguous > 0 {
		lost = lost.With(fmt.Sprintf("at least: of %s writes no answer says whether they took effect, %s did, and these can hide lost ones",
			Count(w.Ambiguous).Text, Count(w.AmbiguousApplied).Text))
	}
	return []Cell{lost, Count(w.Acknowledged)}
}

// Happenings shows what happened during the steps that were measured at one rate:
// events and outages, each with the cell that it belongs to.
func Happenings(run results.Run) []Table {
	var all []Table
	for _, c := range run.Cells {
		for _, s := range c.Steps {
			if s.Purpose != "fixed" {
				continue
			}
			for _, t := range []Table{events(s), outages(s)} {
				if len(t.Rows) > 0 {
					t.Title += ": " + c.Stage + " " + c.Workload
					all = append(all, t)
				}
			}
		}
	}
	return all
}
