package table

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// workColumns returns what edges, caches, databases and other tiers did in the step at the reference rate, and its
// legend.
func workColumns(rows []ladderRow) (columns []column[ladderRow], docs []string) {
	has := func(reported func(results.Step) bool) bool {
		return slices.ContainsFunc(rows, func(r ladderRow) bool { return reported(r.measured()) })
	}
	if has(func(s results.Step) bool { return s.Static != nil }) {
		columns, docs = staticColumns(), []string{staticLegend}
	}
	cached := has(func(s results.Step) bool { return s.Cache != nil })
	if cached {
		columns = append(columns, cacheColumns()...)
		docs = append(docs, "cache hits: share of the web tier's cache reads that found the key")
	}
	figures, figureDocs := figureColumns(rows, ladderRow.measured)
	columns, docs = append(columns, figures...), append(docs, figureDocs...)
	if cached {
		columns = append(columns, numbers("db ops per\nrequest", "database_operations_per_request",
			func(r ladderRow) Cell { return operationsPerRequest(r.measured()) }))
		docs = append(docs, "db ops per request: round trips from web and cache hosts to the databases")
	}
	return columns, docs
}

const staticLegend = "edge hits: share of the requests for images and assets that did not reach a web host, " +
	"and of their bytes, as clients and web hosts count them; at most: what the lifetimes of the responses permit"

func staticColumns() []column[ladderRow] {
	type reads = results.StaticReads
	show := optional(func(r ladderRow) *reads { return r.measured().Static }, Blank())
	return []column[ladderRow]{
		numbers("edge\nhits", "edge_hit_ratio", show(func(s reads) Cell { return Share(s.HitRatio()) })),
		numbers("of\nbytes", "edge_byte_hit_ratio", show(func(s reads) Cell { return Share(s.ByteHitRatio()) })),
		numbers("at\nmost", "edge_hit_ceiling", show(func(s reads) Cell { return shareIf(s.Ceiling()) })),
		machineOnly("static_requests", show(func(s reads) Cell { return Count(s.Requests) })),
		machineOnly("static_bytes", show(func(s reads) Cell { return Count(s.Bytes) })),
		machineOnly("origin_requests", show(func(s reads) Cell { return Count(s.OriginRequests) })),
		machineOnly("origin_bytes", show(func(s reads) Cell { return Count(s.OriginBytes) })),
	}
}

// consistencyColumns returns the stale reads and the lost writes of the cells, and their legend. A column is present
// only if at least one cell has a value for it. Stale reads are from the step at the reference rate, like latencies.
func consistencyColumns(rows []ladderRow) (columns []column[ladderRow], docs []string) {
	readBack := slices.ContainsFunc(rows, func(r ladderRow) bool { return r.Writes != nil })
	if readBack || slices.ContainsFunc(rows, func(r ladderRow) bool {
		s := r.measured().Stale
		return s != nil && s.Stale > 0
	}) {
		columns, docs = append(columns, staleColumns()...), append(docs, staleLegend)
	}
	if slices.ContainsFunc(rows, func(r ladderRow) bool { return r.measured().Cache != nil }) {
		columns = append(columns, staleHitColumns()...)
		docs = append(docs, "stale hits: the same for the reads that the cache answered, with their age")
	}
	if readBack {
		columns = append(columns, lostColumns()...)
		docs = append(docs, "lost writes: acknowledged writes that no longer existed when the records were read back after "+
			"the measurement")
	}
	return columns, docs
}

const staleLegend = "stale: reads that returned an older version than one acknowledged before the read was sent; " +
	"age: time since that acknowledgement"

// figureColumns returns a column for each figure that has a title and that some row reports, and the figures' docs.
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
		return Blank("unknown: no answer from " + strings.Join(f.Unknown, ", "))
	case len(f.SinceStart) > 0:
		return Count(*f.Value).With("includes the total since start of " + strings.Join(f.SinceStart, ", ") +
			": it started during the step, or did not answer at the beginning of the step")
	}
	return Count(*f.Value)
}

// shareIf shows a share that may be unknown.
func shareIf(share float64, known bool) Cell {
	if !known {
		return Blank()
	}
	return Share(share)
}

func cacheColumns() []column[ladderRow] {
	type reads = results.CacheReads
	show := optional(func(r ladderRow) *reads { return r.measured().Cache }, Blank())
	return []column[ladderRow]{
		numbers("cache\nhits", "cache_hit_ratio", show(func(c reads) Cell { return Share(c.HitRatio()) })),
		numbers("cache\nreads", "cache_reads", show(func(c reads) Cell { return Count(c.Hits + c.Misses) })),
	}
}

func staleColumns() []column[ladderRow] {
	show := optional(func(r ladderRow) *results.Stale { return r.measured().Stale }, Cell{})
	return []column[ladderRow]{
		numbers("stale", "stale_share", show(func(s results.Stale) Cell {
			if s.RYWViolations == 0 {
				return Share(s.Share())
			}
			return Share(s.Share()).With(ownWritesMissed(s))
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

// ownWritesMissed is the note about violations of read-your-writes.
func ownWritesMissed(s results.Stale) string {
	return Count(s.RYWViolations).Text + " of " + Count(s.Stale).Text + " stale reads missed a write of the same user"
}

func staleHitColumns() []column[ladderRow] {
	show := optional(func(r ladderRow) *results.Stale {
		if r.measured().Cache == nil {
			return nil
		}
		return r.measured().Stale
	}, Blank())
	return []column[ladderRow]{
		numbers("stale\nhits", "stale_hit_share", show(func(s results.Stale) Cell {
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
	show := optional(func(r ladderRow) *results.Writes { return r.Writes }, Blank())
	return []column[ladderRow]{
		numbers("lost\nwrites", "lost_writes", show(func(w results.Writes) Cell {
			lost := Count(w.Lost)
			if w.Conflicts > 0 {
				lost = lost.With(fmt.Sprintf("the primaries counted %s conflicts: "+
					"two primaries changed the same row concurrently, and the later change won%s",
					Count(w.Conflicts).Text, discarded(w.Discarded)))
			}
			if w.Ambiguous > 0 {
				lost = lost.With(fmt.Sprintf("this is a lower bound: %s writes had no clear answer, "+
					"%s of them took effect and may hide lost writes",
					Count(w.Ambiguous).Text, Count(w.AmbiguousApplied).Text))
			}
			return lost
		})),
		machineOnly("acknowledged_writes", show(func(w results.Writes) Cell { return Count(w.Acknowledged) })),
	}
}

// discarded says what the lost updates of conflicts had added to numbers, "" = nothing.
func discarded(columns map[string]int64) string {
	var all []string
	for _, column := range slices.Sorted(maps.Keys(columns)) {
		all = append(all, column+" "+Count(columns[column]).Text)
	}
	if len(all) == 0 {
		return ""
	}
	return "; the other changes had added " + strings.Join(all, ", ")
}

// Faults shows what happened to the cells while their fixed rate was measured: events, outages, failovers, and the
// processing of uploads by workers.
func Faults(run results.Run) []Table {
	var all []Table
	for _, c := range run.Cells {
		var tables []Table
		for _, s := range c.Steps {
			if s.Purpose == "fixed" {
				tables = append(tables, events(s), outages(s), processing(s))
			}
		}
		for _, t := range append(tables, Failovers(c.Failovers)) {
			if len(t.Rows) > 0 {
				t.Title += ": " + c.Stage + " " + c.Workload
				all = append(all, t)
			}
		}
	}
	return all
}

// Failovers shows failovers of databases, with the durations of their steps.
func Failovers(failovers []results.Failover) Table {
	type failover = results.Failover
	legend := []string{
		"detect: from the last answer of the old primary until it was considered dead; " +
			"fence: until it could no longer accept writes",
		"promote: until the new primary accepted writes; switch: until all web hosts sent their writes to it",
	}
	if slices.ContainsFunc(failovers, func(f failover) bool { return f.ReplaceNS > 0 }) {
		legend = append(legend,
			"replaced: from the last answer of the old primary until it was a replica that had caught up")
	}
	return newTable("Failovers", []column[failover]{
		numbers("epoch", "", func(f failover) Cell { return ID(f.Epoch) }),
		words("from", "", func(f failover) Cell { return Text(f.From) }),
		words("to", "", func(f failover) Cell { return Text(f.To) }),
		numbers("detect ms", "detect_ns", func(f failover) Cell { return Nanoseconds(f.DetectNS) }),
		numbers("fence ms", "fence_ns", func(f failover) Cell { return Nanoseconds(f.FenceNS) }),
		numbers("promote ms", "promote_ns", func(f failover) Cell { return Nanoseconds(f.PromoteNS) }),
		numbers("switch ms", "switch_ns", func(f failover) Cell { return Nanoseconds(f.SwitchNS) }),
		numbers("replaced ms", "replace_ns", func(f failover) Cell {
			if f.ReplaceNS == 0 {
				return Blank("the old primary was not a replica again before the end")
			}
			return Nanoseconds(f.ReplaceNS)
		}),
	}, failovers, legend...)
}
