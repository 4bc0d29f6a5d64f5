package cell

import "github.com/stagebench/stagebench/sut"

// FigureKind says how a figure of a step is made from what a node reports.
type FigureKind string

// The kinds.
const (
	Counter FigureKind = "counter" // growth over the step
	Gauge   FigureKind = "gauge"   // value at its end
)

// Figure is something that the nodes of a tier count or hold, and that is shown with each step.
type Figure struct {
	Name   string     // in summary.json and CSV, unit last: "cache_evictions"
	Metric string     // Prometheus metric at the nodes' admin address, summed over labels, or one series of it
	From   []sut.Role // roles whose nodes report it
	Kind   FigureKind
	Title  string // column title in tables, "" = no column
	Doc    string // one sentence for the legend and for `list`
}

// Figures returns the declared figures.
func Figures() []Figure {
	web, cache, users := []sut.Role{sut.Web}, []sut.Role{sut.Cache}, []sut.Role{sut.Web, sut.Cache}
	const reads, operations = "stagebench_cache_reads_total", "stagebench_store_operations_total"
	return []Figure{
		{cacheHits, reads + `{result="hit"}`, web, Counter, "", "keys that web hosts found in the cache tier"},
		{cacheMisses, reads + `{result="miss"}`, web, Counter, "", "keys that web hosts missed in the cache tier"},
		{
			"cache_evictions", "stagebench_cache_node_evictions_total", cache, Counter,
			"cache\nevictions", "evictions: entries that went because its memory was used up",
		},
		{databaseReads, operations + `{kind="read"}`, users, Counter, "", "round trips to the databases to read"},
		{databaseWrites, operations + `{kind="write"}`, users, Counter, "", "round trips to the databases to write"},
	}
}
