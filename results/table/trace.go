package table

import (
	"maps"
	"slices"

	"github.com/stagebench/stagebench/results"
)

// Traces shows what became of the lines of replayed traces, and by which reasons
// requests were not sent; nothing where there was no trace.
func Traces(traces ...*results.Trace) []Table {
	t := Table{Title: "Trace", Columns: []Column{
		{Name: "lines", Align: Right},
		{Name: "broken", Align: Right},
		{Name: "out of\norder", Key: "out_of_order", Align: Right},
		{Name: "duplicate\ntimes", Key: "duplicate_times", Align: Right},
		{Name: "mapped", Align: Right},
		{Name: "skipped", Align: Right},
		{Name: "paths", Align: Right},
		{Name: "clients", Align: Right},
		{Name: "span s\nas logged", Key: "span_ns", Align: Right},
		{Name: "length s\nas replayed", Key: "length_ns", Align: Right},
	}, Legend: []string{
		"lines = mapped + skipped; of those skipped some are broken lines; requests that were out of order were sorted by their times",
	}}
	skips := Table{Title: "Skipped lines", Columns: []Column{{Name: "reason"}, {Name: "lines", Align: Right}}}
	for _, trace := range traces {
		if trace == nil {
			continue
		}
		var skipped int64
		for _, reason := range slices.Sorted(maps.Keys(trace.Skipped)) {
			skipped += trace.Skipped[reason]
			skips.Rows = append(skips.Rows, []Cell{Text(reason), Count(trace.Skipped[reason])})
		}
		t.Rows = append(t.Rows, []Cell{
			Count(trace.Lines), Count(trace.Broken), Count(trace.OutOfOrder), Count(trace.DuplicateTimes),
			Count(trace.Mapped), Count(skipped), Count(trace.Paths), Count(trace.Clients), seconds(trace.SpanNS), seconds(trace.LengthNS),
		})
	}
	var tables []Table
	for _, table := range []Table{t, skips} {
		if len(table.Rows) > 0 {
			tables = append(tables, table)
		}
	}
	return tables
}

// seconds shows nanoseconds to people as seconds.
func seconds(ns int64) Cell { return Cell{Text: significant(float64(ns)/1e9, 4), Value: ns} }
