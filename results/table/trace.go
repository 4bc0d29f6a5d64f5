package table

import (
	"maps"
	"slices"

	"github.com/stagebench/stagebench/results"
)

// Traces shows how the lines of replayed traces were used, and why lines were
// skipped. It ignores nil traces, and returns no table without traces.
func Traces(traces ...*results.Trace) []Table {
	type trace = *results.Trace
	type skip struct {
		reason string
		lines  int64
	}
	var skips []skip
	skipped := func(t trace) (sum int64) {
		for _, lines := range t.Skipped {
			sum += lines
		}
		return sum
	}
	traces = slices.DeleteFunc(slices.Clone(traces), func(t trace) bool { return t == nil })
	for _, t := range traces {
		for _, reason := range slices.Sorted(maps.Keys(t.Skipped)) {
			skips = append(skips, skip{reason, t.Skipped[reason]})
		}
	}
	return slices.DeleteFunc([]Table{
		newTable("Trace", []column[trace]{
			numbers("lines", "", func(t trace) Cell { return Count(t.Lines) }),
			numbers("broken", "", func(t trace) Cell { return Count(t.Broken) }),
			numbers("out of\norder", "out_of_order", func(t trace) Cell { return Count(t.OutOfOrder) }),
			numbers("duplicate\ntimes", "duplicate_times", func(t trace) Cell { return Count(t.DuplicateTimes) }),
			numbers("mapped", "", func(t trace) Cell { return Count(t.Mapped) }),
			numbers("skipped", "", func(t trace) Cell { return Count(skipped(t)) }),
			numbers("paths", "", func(t trace) Cell { return Count(t.Paths) }),
			numbers("clients", "", func(t trace) Cell { return Count(t.Clients) }),
			numbers("span s\nas logged", "span_ns", func(t trace) Cell { return seconds(t.SpanNS) }),
			numbers("length s\nas replayed", "length_ns", func(t trace) Cell { return seconds(t.LengthNS) }),
		}, traces, "lines = mapped + skipped; skipped includes broken lines; "+
			"out-of-order requests were sorted by their times"),
		newTable("Skipped lines", []column[skip]{
			words("reason", "", func(s skip) Cell { return Text(s.reason) }),
			numbers("lines", "", func(s skip) Cell { return Count(s.lines) }),
		}, skips),
	}, func(t Table) bool { return len(t.Rows) == 0 })
}
