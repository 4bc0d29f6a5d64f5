package table

import (
	"fmt"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// extra is columns that the ladder has only where some cell has something to show.
// Shares and ages are those of the step at the reference rate, as the latencies are.
type extra struct {
	columns []Column
	row     func(results.Cell) []Cell // one for each column
	legend  string
}

// addExtras adds what clients saw of the cache tier, of stale answers and of lost
// writes, each where it was looked for or found.
func addExtras(t *Table, cells []results.Cell, at string) {
	looked := slices.ContainsFunc(cells, func(c results.Cell) bool { return c.Writes != nil })
	stale := slices.ContainsFunc(cells, func(c results.Cell) bool { s := staleOf(c); return s != nil && s.Stale > 0 })
	cached := slices.ContainsFunc(cells, func(c results.Cell) bool { return cacheOf(c) != nil })
	var extras []extra
	if cached {
		extras = append(extras, cacheColumns(at))
	}
	if looked || stale {
		extras = append(extras, staleColumns(at))
	}
	if cached {
		extras = append(extras, staleHitColumns(at))
	}
	if looked {
		extras = append(extras, lostColumns())
	}
	place := slices.IndexFunc(t.Columns, func(c Column) bool { return c.Key == "errors_share" }) + 1
	for _, e := range extras {
		t.Columns = slices.Insert(t.Columns, place, e.columns...)
		for i, c := range cells {
			t.Rows[i] = slices.Insert(t.Rows[i], place, e.row(c)...)
		}
		t.Legend = append(t.Legend, e.legend)
		place += len(e.columns)
	}
}

func cacheColumns(at string) extra {
	return extra{
		columns: []Column{
			{Name: "cache hits\n" + at, Key: "cache_hit_ratio", Align: Right},
			{Name: "cache\nreads", Key: "cache_reads", Align: Right},
			{Name: "cache\nevictions", Key: "cache_evictions", Align: Right},
			{Name: "db ops per\nrequest", Key: "database_operations_per_request", Align: Right},
		},
		row:    cacheCells,
		legend: "cache hits: of the keys that the web tier asked the cache tier for (cache reads), those that were there; evictions: entries that went because its memory was used up; db ops per request: round trips to the databases, from web and cache hosts",
	}
}

func staleColumns(at string) extra {
	return extra{
		columns: []Column{
			{Name: "stale\n" + at, Key: "stale_share", Align: Right},
			{Name: "age ms\np99", Key: "stale_age_p99_ns", Align: Right},
			{Name: "age ms\nmax", Key: "stale_age_max_ns", Align: Right},
			{Key: "stale_reads", For: Machines},
			{Key: "judged_reads", For: Machines},
			{Key: "ryw_violations", For: Machines},
		},
		row:    staleCells,
		legend: "stale: reads that showed less than what had been acknowledged before they were sent; age: for how long it had been",
	}
}

func staleHitColumns(at string) extra {
	return extra{
		columns: []Column{
			{Name: "stale hits\n" + at, Key: "stale_hit_share", Align: Right},
			{Name: "hit age\nms max", Key: "stale_hit_age_max_ns", Align: Right},
			{Key: "stale_hits", For: Machines},
			{Key: "judged_hits", For: Machines},
		},
		row:    staleHitCells,
		legend: "stale hits: of the reads of single records that the cache answered, those that were stale; hit age: for how long they had been",
	}
}

func lostColumns() extra {
	return extra{
		columns: []Column{{Name: "lost\nwrites", Key: "lost_writes", Align: Right}, {Key: "acknowledged_writes", For: Machines}},
		row:     lostCells,
		legend:  "lost writes: acknowledged, and not there when all was read back after the measurement",
	}
}

func cacheOf(c results.Cell) *results.CacheReads {
	if c.Reference == nil || c.Error != "" {
		return nil
	}
	return c.Reference.Cache
}

func cacheCells(c results.Cell) []Cell {
	calls := Blank()
	if c.Reference != nil && c.Error == "" {
		calls = operationsPerRequest(*c.Reference)
	}
	reads := cacheOf(c)
	if reads == nil {
		return []Cell{Blank(), Blank(), Blank(), calls}
	}
	return []Cell{Share(reads.HitRatio()), Count(reads.Hits + reads.Misses), evictions(c.Reference.CacheNodes), calls}
}

// evictions is the sum over all cache hosts.
func evictions(nodes []results.CacheNode) Cell {
	if len(nodes) == 0 {
		return Blank("no cache host said how much it had evicted")
	}
	var sum int64
	var since []string
	for _, n := range nodes {
		sum += n.Evictions
		if n.SinceStart {
			since = append(since, n.Node)
		}
	}
	cell := Count(sum)
	if len(since) > 0 {
		cell = cell.With("with all since the start of " + strings.Join(since, ", ") + ": that was during the step, or it did not answer at the beginning")
	}
	return cell
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
	p99 := Blank()
	if s.Stale > 0 {
		p99 = percentile(s.AgeNS.P99, s.AgeNS.Count, 0.99)
	}
	return []Cell{share, p99, oldest(s.AgeNS), Count(s.Stale), Count(s.Reads), Count(s.RYWViolations)}
}

func staleHitCells(c results.Cell) []Cell {
	s := staleOf(c)
	if s == nil || cacheOf(c) == nil {
		return []Cell{Blank(), Blank(), Blank(), Blank()}
	}
	share := Share(s.HitShare())
	if s.Hits == 0 {
		share = Blank()
	}
	return []Cell{share, oldest(s.HitAgeNS), Count(s.StaleHits), Count(s.Hits)}
}

// oldest is the greatest of some ages.
func oldest(ages results.Latency) Cell {
	if ages.Count == 0 || ages.Max == nil {
		return Blank()
	}
	return Nanoseconds(*ages.Max)
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
