package table

import (
	"fmt"
	"maps"
	"slices"

	"github.com/stagebench/stagebench/results"
)

// staleAnswers shows the stale reads of replicas and caches.
func staleAnswers(s results.Step) Table {
	type reads struct {
		of            string
		judged, stale int64
		share         float64
		age           results.Latency
	}
	var rows []reads
	var notes []string
	if a := s.Stale; a != nil {
		rows = append(rows, reads{"all", a.Reads, a.Stale, a.Share(), a.AgeNS})
		if a.Hits > 0 {
			rows = append(rows, reads{"the cache", a.Hits, a.StaleHits, a.HitShare(), a.HitAgeNS})
		}
		if a.RYWViolations > 0 {
			notes = append(notes, ownWritesMissed(*a))
		}
	}
	t := newTable("Stale answers", []column[reads]{
		identifying("reads of", func(r reads) Cell { return Text(r.of) }),
		numbers("judged", "", func(r reads) Cell { return Count(r.judged) }),
		numbers("stale", "", func(r reads) Cell { return Count(r.stale) }),
		numbers("share", "", func(r reads) Cell { return Share(r.share) }),
		numbers("age p50 ms", "age_p50_ns", func(r reads) Cell { return p50(r.age) }),
		numbers("age p99 ms", "age_p99_ns", func(r reads) Cell { return p99(r.age) }),
		numbers("age max ms", "age_max_ns", func(r reads) Cell { return longest(r.age) }),
	}, rows, staleLegend)
	t.Notes = notes
	return t
}

// processing shows what became of the uploads of a step, if workers process them.
func processing(s results.Step) Table {
	type uploads = results.Processing
	var rows []uploads
	if s.Processing != nil {
		rows = append(rows, *s.Processing)
	}
	return newTable("Processing of uploads", []column[uploads]{
		numbers("uploaded", "", func(p uploads) Cell { return Count(p.Uploaded) }),
		numbers("ready", "", func(p uploads) Cell { return Count(p.Ready) }),
		numbers("failed", "", func(p uploads) Cell { return Count(p.Failed) }),
		numbers("unfinished", "", func(p uploads) Cell { return Count(p.Unfinished) }),
		numbers("missing", "", func(p uploads) Cell { return Count(p.Missing) }),
		numbers("p50 ms", "done_p50_ns", func(p uploads) Cell { return p50(p.DoneNS) }),
		numbers("p99 ms", "done_p99_ns", func(p uploads) Cell { return p99(p.DoneNS) }),
		numbers("max ms", "done_max_ns", func(p uploads) Cell { return longest(p.DoneNS) }),
		numbers("backlog", "max_backlog", func(p uploads) Cell { return Count(p.MaxBacklog) }),
		numbers("drained ms", "drain_ns", func(p uploads) Cell {
			if p.DrainNS == nil {
				return Blank("the backlog was not drained")
			}
			return Nanoseconds(*p.DrainNS)
		}),
	}, rows, "percentiles: from the intended time of an upload until its images were there",
		"backlog: most uploads at one time that were answered and not processed; drained: from then on until one was left")
}

// source is one row of the table of sources: the successes of one op class, or of all.
type source struct {
	op                                    string
	ok, hits, revalidated, missed, others int64 // others: requests that edges do not answer, such as writes
	cached                                int64
}

// sources shows which tier answered, if there are edges.
func sources(s results.Step) Table {
	all := source{op: "all"}
	var rows []source
	for _, name := range slices.Sorted(maps.Keys(s.Ops)) {
		op := s.Ops[name]
		if op.Edge == nil {
			continue
		}
		r := source{
			op: name, ok: op.Count - op.Errors - op.SessionLost, hits: op.Edge["hit"], revalidated: op.Edge["stale"],
			missed: op.Edge["miss"] + op.Edge["uri-miss"] + op.Edge["vary-miss"] + op.Edge["partial"], cached: op.Cached,
		}
		r.others = r.ok - r.hits - r.revalidated - r.missed
		rows = append(rows, r)
		all.ok, all.hits, all.revalidated = all.ok+r.ok, all.hits+r.hits, all.revalidated+r.revalidated
		all.missed, all.others, all.cached = all.missed+r.missed, all.others+r.others, all.cached+r.cached
	}
	if rows == nil {
		return Table{}
	}
	rows = append(rows, all)
	legend := []string{
		"edge hits, revalidated, missed, passed: what the edge did, by its header Cache-Status (RFC 9211); " +
			"cache: of the rest, what the cache tier answered",
	}
	if s.Static != nil {
		legend = append(legend, fmt.Sprintf("images and assets: %s of the requests and %s of the bytes did not reach a web "+
			"host, as clients and web hosts count them", percent(s.Static.HitRatio()), percent(s.Static.ByteHitRatio())))
		if most, known := s.Static.Ceiling(); known {
			legend = append(legend, "an edge with unlimited memory would have answered "+percent(most)+" of these requests")
		}
	}
	return newTable("Answered by", []column[source]{
		identifying("op", func(r source) Cell { return Text(r.op) }),
		numbers("successes", "", func(r source) Cell { return Count(r.ok) }),
		numbers("edge hits", "edge_hits", func(r source) Cell { return Count(r.hits) }),
		numbers("revalidated", "edge_revalidated", func(r source) Cell { return Count(r.revalidated) }),
		numbers("missed", "edge_missed", func(r source) Cell { return Count(r.missed) }),
		numbers("passed", "edge_passed", func(r source) Cell { return Count(r.others) }),
		numbers("cache", "cache_answered", func(r source) Cell { return Count(r.cached) }),
	}, rows, legend...)
}

// cacheCount is one row of the cache table: the counts of the web tier or of one cache host.
type cacheCount struct {
	results.CacheReads
	host *results.CacheNode // nil = the web tier
}

// cacheTier shows the cache reads that the web tier counted, and the figures of each cache host.
func cacheTier(s results.Step) Table {
	var rows []cacheCount
	if s.Cache != nil {
		rows = append(rows, cacheCount{CacheReads: *s.Cache})
	}
	writesBack := false
	for i, n := range s.CacheNodes {
		rows = append(rows, cacheCount{results.CacheReads{Hits: n.Hits, Misses: n.Misses}, &s.CacheNodes[i]})
		writesBack = writesBack || n.WriteBack != nil && *n.WriteBack != results.WriteBack{}
	}
	hostOf := func(c cacheCount) *results.CacheNode { return c.host }
	host := optional(hostOf, Blank())
	writeBack := optional(func(c cacheCount) *results.WriteBack {
		if c.host == nil {
			return nil
		}
		return c.host.WriteBack
	}, Blank())
	t := newTable("Cache", []column[cacheCount]{
		words("counted by", "node", optional(hostOf, Text("web tier"))(cacheName)),
		numbers("hits", "", func(c cacheCount) Cell { return Count(c.Hits) }),
		numbers("misses", "", func(c cacheCount) Cell { return Count(c.Misses) }),
		numbers("hit ratio", "", func(c cacheCount) Cell {
			if c.Hits+c.Misses == 0 {
				return Blank()
			}
			return Share(c.HitRatio())
		}),
		numbers("evictions", "", host(func(n results.CacheNode) Cell { return Count(n.Evictions) })),
		numbers("expired", "", host(func(n results.CacheNode) Cell { return Count(n.Expired) })),
		numbers("entries", "", host(func(n results.CacheNode) Cell { return Count(n.Entries) })),
		numbers("MB", "bytes", host(func(n results.CacheNode) Cell { return megabytes(n.Bytes) })),
		numbers("of MB", "limit_bytes", host(func(n results.CacheNode) Cell { return megabytes(n.LimitBytes) })),
		numbers("unflushed", "", writeBack(func(w results.WriteBack) Cell { return Count(w.Unflushed) })),
		numbers("flushed", "", writeBack(func(w results.WriteBack) Cell { return Count(w.Flushed) })),
		numbers("refused", "", writeBack(func(w results.WriteBack) Cell { return Count(w.Refused) })),
	}, rows)
	if writesBack {
		t.Legend = []string{"unflushed: acknowledged writes that the database does not have yet; " +
			"refused: writes that the database refused, which are lost"}
	} else {
		t.setAudience(Machines, "unflushed", "flushed", "refused")
	}
	return t
}

func cacheName(n results.CacheNode) Cell {
	if n.SinceStart {
		return Text(n.Node).With("its counts are totals since start: " +
			"it started during the step, or did not answer at the beginning of the step")
	}
	return Text(n.Node)
}

// databases shows the calls of web and cache hosts to the databases.
func databases(s results.Step) Table {
	var rows []results.DatabaseCalls
	if s.Database != nil {
		rows = append(rows, *s.Database)
	}
	return newTable("Databases", []column[results.DatabaseCalls]{
		numbers("reads", "", func(d results.DatabaseCalls) Cell { return Count(d.Reads) }),
		numbers("writes", "", func(d results.DatabaseCalls) Cell { return Count(d.Writes) }),
		numbers("ops per request", "operations_per_request", func(results.DatabaseCalls) Cell {
			return operationsPerRequest(s)
		}),
	}, rows, "round trips from web and cache hosts to the databases; a write-back batch counts as one")
}

// operationsPerRequest is a cell with the number of database calls per sent request.
func operationsPerRequest(s results.Step) Cell {
	if s.Database == nil {
		return Blank()
	}
	return Number(float64(s.Database.Reads+s.Database.Writes) / float64(max(s.Ledger.Sent, 1)))
}

// figures shows the tiers' figures that no other table shows.
func figures(s results.Step) Table {
	s.Figures = slices.DeleteFunc(slices.Clone(s.Figures), func(f results.Figure) bool {
		return f.Name == "cache_evictions" // shown per host in the cache table
	})
	rows := []results.Step{s}
	columns, legend := figureColumns(rows, func(s results.Step) results.Step { return s })
	if len(columns) == 0 {
		return Table{}
	}
	return newTable("Figures", columns, rows, legend...)
}
