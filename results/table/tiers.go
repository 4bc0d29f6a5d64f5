package table

import (
	"slices"

	"github.com/stagebench/stagebench/results"
)

// staleAnswers shows what clients saw of copies that were behind and of caches.
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
			notes = append(notes, Count(a.RYWViolations).Text+
				" stale reads were by the user whose own write they did not show")
		}
	}
	t := newTable("Stale answers", []column[reads]{
		words("reads of", "", func(r reads) Cell { return Text(r.of) }),
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

// cacheCount is what web hosts found in the cache, or what one of its hosts counted.
type cacheCount struct {
	results.CacheReads
	host *results.CacheNode // nil = web hosts
}

// cacheTier shows what web hosts found in the cache, and what each of its hosts reports.
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
	host := part(hostOf, Blank())
	back := part(func(c cacheCount) *results.WriteBack {
		if c.host == nil {
			return nil
		}
		return c.host.WriteBack
	}, Blank())
	t := newTable("Cache", []column[cacheCount]{
		words("counted by", "node", part(hostOf, Text("web tier"))(cacheName)),
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
		numbers("unflushed", "", back(func(w results.WriteBack) Cell { return Count(w.Unflushed) })),
		numbers("flushed", "", back(func(w results.WriteBack) Cell { return Count(w.Flushed) })),
		numbers("refused", "", back(func(w results.WriteBack) Cell { return Count(w.Refused) })),
	}, rows)
	if writesBack {
		t.Legend = []string{"unflushed: acknowledged writes that the host holds and the database does not have yet; " +
			"refused: those that it did not take, which are lost"}
	} else {
		t.setAudience(Machines, "unflushed", "flushed", "refused")
	}
	return t
}

func cacheName(n results.CacheNode) Cell {
	if n.SinceStart {
		return Text(n.Node).With("its counts are those since it was started: " +
			"that was during the step, or it did not answer at the beginning")
	}
	return Text(n.Node)
}

// databases shows what web and cache hosts asked of the databases.
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
	}, rows, "round trips of web and cache hosts to the databases; a batch of write-back is one")
}

// operationsPerRequest is how often a database was asked for one request.
func operationsPerRequest(s results.Step) Cell {
	if s.Database == nil {
		return Blank()
	}
	return Number(float64(s.Database.Reads+s.Database.Writes) / float64(max(s.Ledger.Sent, 1)))
}

// figures shows the declared figures that no other table shows.
func figures(s results.Step) Table {
	s.Figures = slices.DeleteFunc(slices.Clone(s.Figures), func(f results.Figure) bool {
		return f.Name == "cache_evictions" // the cache table has it host by host
	})
	rows := []results.Step{s}
	columns, legend := figureColumns(rows, func(s results.Step) results.Step { return s })
	if len(columns) == 0 {
		return Table{}
	}
	return newTable("Figures", columns, rows, legend...)
}
