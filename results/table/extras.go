package table

import (
	"fmt"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// extras returns the columns that the ladder has only where some cell has something to show in them, and their
// legend: what clients saw of the cache tier, the declared figures, stale answers, lost writes. Shares, ages and
// figures are those of the step at the reference rate, as the latencies are.
func extras(rows []ladderRow, at string) (columns []column[ladderRow], legend []string) {
	readBack := slices.ContainsFunc(rows, func(r ladderRow) bool { return r.Writes != nil })
	stale := slices.ContainsFunc(rows, func(r ladderRow) bool {
		s := r.measured().Stale
		return s != nil && s.Stale > 0
	})
	cached := slices.ContainsFunc(rows, func(r ladderRow) bool { return r.measured().Cache != nil })
	figures, docs := figureColumns(rows, ladderRow.measured)
	if cached {
		figures = slices.Concat(cacheColumns(at), figures, []column[ladderRow]{
			numbers("db ops per\nrequest", "database_operations_per_request", func(r ladderRow) Cell {
				return operationsPerRequest(r.measured())
			}),
		})
		docs = append(slices.Insert(docs, 0, "cache hits: of the keys that the web tier asked the cache tier for "+
			"(cache reads), those that were there"),
			"db ops per request: round trips to the databases, from web and cache hosts")
	}
	add := func(these []column[ladderRow], texts ...string) {
		columns, legend = append(columns, these...), append(legend, texts...)
	}
	add(figures)
	if len(docs) > 0 {
		add(nil, strings.Join(docs, "; "))
	}
	if readBack || stale {
		add(staleColumns(at), staleLegend)
	}
	if cached {
		add(staleHitColumns(at), "stale hits: of the reads of single records that the cache answered, "+
			"those that were stale; hit age: for how long they had been")
	}
	if readBack {
		add(lostColumns(), "lost writes: acknowledged, and not there when all was read back after the measurement")
	}
	return columns, legend
}

const staleLegend = "stale: reads that showed less than what had been acknowledged before they were sent; " +
	"age: for how long it had been"

// figureColumns returns a column for each declared figure with a title that some row has, and the sentences that
// explain them.
func figureColumns[R any](rows []R, step func(R) results.Step) (columns []column[R], docs []string) {
	seen := map[string]bool{}
	for _, r := range rows {
		for _, f := range step(r).Figures {
			if f.Title == "" || seen[f.Name] {
				continue
			}
			seen[f.Name] = true
			if f.Doc != "" {
				docs = append(docs, f.Doc)
			}
			columns = append(columns, numbers(f.Title, f.Name, func(r R) Cell {
				return figureCell(step(r).Figure(f.Name))
			}))
		}
	}
	return columns, docs
}

func figureCell(f *results.Figure) Cell {
	switch {
	case f == nil:
		return Blank()
	case f.Value == nil:
		return Blank("not known: no answer from " + strings.Join(f.Unknown, ", "))
	case len(f.SinceStart) > 0:
		return Count(*f.Value).With("with all since the start of " + strings.Join(f.SinceStart, ", ") +
			": that was during the step, or it did not answer at the beginning")
	}
	return Count(*f.Value)
}

func cacheColumns(at string) []column[ladderRow] {
	type reads = results.CacheReads
	show := part(func(r ladderRow) *reads { return r.measured().Cache }, Blank())
	return []column[ladderRow]{
		numbers("cache hits\n"+at, "cache_hit_ratio", show(func(c reads) Cell { return Share(c.HitRatio()) })),
		numbers("cache\nreads", "cache_reads", show(func(c reads) Cell { return Count(c.Hits + c.Misses) })),
	}
}

func staleColumns(at string) []column[ladderRow] {
	show := part(func(r ladderRow) *results.Stale { return r.measured().Stale }, Cell{})
	return []column[ladderRow]{
		numbers("stale\n"+at, "stale_share", show(func(s results.Stale) Cell {
			if s.RYWViolations == 0 {
				return Share(s.Share())
			}
			return Share(s.Share()).With(Count(s.RYWViolations).Text + " of " + Count(s.Stale).Text +
				" stale reads were by the user whose own write they did not show")
		})),
		numbers("age ms\np99", "stale_age_p99_ns", show(func(s results.Stale) Cell {
			if s.Stale == 0 {
				return Blank()
			}
			return p99(s.AgeNS)
		})),
		numbers("age ms\nmax", "stale_age_max_ns", show(func(s results.Stale) Cell { return longest(s.AgeNS) })),
		machineOnly("stale_reads", show(func(s results.Stale) Cell { return Count(s.Stale) })),
		machineOnly("judged_reads", show(func(s results.Stale) Cell { return Count(s.Reads) })),
		machineOnly("ryw_violations", show(func(s results.Stale) Cell { return Count(s.RYWViolations) })),
	}
}

func staleHitColumns(at string) []column[ladderRow] {
	show := part(func(r ladderRow) *results.Stale {
		if r.measured().Cache == nil {
			return nil
		}
		return r.measured().Stale
	}, Blank())
	return []column[ladderRow]{
		numbers("stale hits\n"+at, "stale_hit_share", show(func(s results.Stale) Cell {
			if s.Hits == 0 {
				return Blank()
			}
			return Share(s.HitShare())
		})),
		numbers("hit age\nms max", "stale_hit_age_max_ns", show(func(s results.Stale) Cell {
			return longest(s.HitAgeNS)
		})),
		machineOnly("stale_hits", show(func(s results.Stale) Cell { return Count(s.StaleHits) })),
		machineOnly("judged_hits", show(func(s results.Stale) Cell { return Count(s.Hits) })),
	}
}

func lostColumns() []column[ladderRow] {
	show := part(func(r ladderRow) *results.Writes { return r.Writes }, Blank())
	return []column[ladderRow]{
		numbers("lost\nwrites", "lost_writes", show(func(w results.Writes) Cell {
			lost := Count(w.Lost)
			if w.Conflicts > 0 {
				lost = lost.With(fmt.Sprintf("several primaries counted %s conflicts: "+
					"rows that two had changed at a time, of which the later change won", Count(w.Conflicts).Text))
			}
			if w.Ambiguous > 0 {
				lost = lost.With(fmt.Sprintf("at least: of %s writes no answer says whether they took effect, "+
					"%s did, and these can hide lost ones", Count(w.Ambiguous).Text, Count(w.AmbiguousApplied).Text))
			}
			return lost
		})),
		machineOnly("acknowledged_writes", show(func(w results.Writes) Cell { return Count(w.Acknowledged) })),
	}
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
