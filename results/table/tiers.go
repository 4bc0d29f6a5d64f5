package table

import (
	"fmt"

	"github.com/stagebench/stagebench/results"
)

// staleAnswers shows what clients saw of copies that were behind and of caches.
func staleAnswers(s results.Step) Table {
	t := Table{
		Title: "Stale answers",
		Columns: []Column{
			{Name: "reads of"},
			{Name: "judged", Align: Right},
			{Name: "stale", Align: Right},
			{Name: "share", Align: Right},
			{Name: "age p50 ms", Key: "age_p50_ns", Align: Right},
			{Name: "age p99 ms", Key: "age_p99_ns", Align: Right},
			{Name: "age max ms", Key: "age_max_ns", Align: Right},
		},
		Legend: []string{"stale: reads that showed less than what had been acknowledged before they were sent; age: for how long it had been"},
	}
	if s.Stale == nil {
		return t
	}
	row := func(name string, judged, stale int64, share float64, age results.Latency) {
		t.Rows = append(t.Rows, []Cell{
			Text(name), Count(judged), Count(stale), Share(share), percentile(age.P50, age.Count, 0.50), percentile(age.P99, age.Count, 0.99), oldest(age),
		})
	}
	row("all", s.Stale.Reads, s.Stale.Stale, s.Stale.Share(), s.Stale.AgeNS)
	if s.Stale.Hits > 0 {
		row("the cache", s.Stale.Hits, s.Stale.StaleHits, s.Stale.HitShare(), s.Stale.HitAgeNS)
	}
	if n := s.Stale.RYWViolations; n > 0 {
		t.Notes = append(t.Notes, fmt.Sprintf("%s stale reads were by the user whose own write they did not show", Count(n).Text))
	}
	return t
}

// cacheTier shows what web hosts found in the cache, and what its hosts say of
// themselves.
func cacheTier(s results.Step) Table {
	t := Table{
		Title: "Cache",
		Columns: []Column{
			{Name: "counted by", Key: "node"},
			{Name: "hits", Align: Right},
			{Name: "misses", Align: Right},
			{Name: "hit ratio", Align: Right},
			{Name: "evictions", Align: Right},
			{Name: "expired", Align: Right},
			{Name: "entries", Align: Right},
			{Name: "MB", Key: "bytes", Align: Right},
			{Name: "of MB", Key: "limit_bytes", Align: Right},
			{Name: "unflushed", Align: Right},
			{Name: "flushed", Align: Right},
			{Name: "refused", Align: Right},
		},
	}
	row := func(name Cell, reads results.CacheReads, rest ...Cell) {
		ratio := Blank()
		if reads.Hits+reads.Misses > 0 {
			ratio = Share(reads.HitRatio())
		}
		t.Rows = append(t.Rows, append([]Cell{name, Count(reads.Hits), Count(reads.Misses), ratio}, rest...))
	}
	if s.Cache != nil {
		row(Text("web tier"), *s.Cache, Blank(), Blank(), Blank(), Blank(), Blank(), Blank(), Blank(), Blank())
	}
	back := false
	for _, n := range s.CacheNodes {
		name := Text(n.Node)
		if n.SinceStart {
			name = name.With("its counts are those since it was started: that was during the step, or it did not answer at the beginning")
		}
		unflushed, flushed, refused := Blank(), Blank(), Blank()
		if w := n.WriteBack; w != nil {
			unflushed, flushed, refused = Count(w.Unflushed), Count(w.Flushed), Count(w.Refused)
			back = back || w.Unflushed+w.Flushed+w.Refused > 0
		}
		row(name, results.CacheReads{Hits: n.Hits, Misses: n.Misses},
			Count(n.Evictions), Count(n.Expired), Count(n.Entries), megabytes(n.Bytes), megabytes(n.LimitBytes), unflushed, flushed, refused)
	}
	if back {
		t.Legend = append(t.Legend, "unflushed: acknowledged writes that the host holds and the database does not have yet; refused: those that it did not take, which are lost")
	} else {
		for _, key := range []string{"unflushed", "flushed", "refused"} {
			t.setAudience(key, Machines)
		}
	}
	return t
}

// databases shows what web and cache hosts asked of the databases.
func databases(s results.Step) Table {
	t := Table{
		Title: "Databases",
		Columns: []Column{
			{Name: "reads", Align: Right},
			{Name: "writes", Align: Right},
			{Name: "ops per request", Key: "operations_per_request", Align: Right},
		},
		Legend: []string{"round trips of web and cache hosts to the databases; a batch of write-back is one"},
	}
	if d := s.Database; d != nil {
		t.Rows = [][]Cell{{Count(d.Reads), Count(d.Writes), operationsPerRequest(s)}}
	}
	return t
}

// operationsPerRequest is how often a database was asked for one request.
func operationsPerRequest(s results.Step) Cell {
	if s.Database == nil {
		return Blank()
	}
	return Number(float64(s.Database.Reads+s.Database.Writes) / float64(max(s.Ledger.Sent, 1)))
}
