package table

import (
	"cmp"
	"fmt"
	"maps"
	"slices"

	"github.com/stagebench/stagebench/results"
)

// Attack shows one step in full: rates and verdict, latencies by op class,
// the four clocks, the ledger, and, where there is any, failures, outages, events,
// stale answers, what the cache tier did, what the databases were asked, and the use of
// the hosts.
func Attack(step results.Step) []Table {
	tables := []Table{overview(step), opsTable(step, "Response time of successes", successes)}
	if step.Ledger.OK < step.Ledger.Scheduled {
		tables = append(tables, opsTable(step, "Response time, failures as infinitely slow", all))
	} else {
		tables[1].Legend = append(tables[1].Legend, "no op failed: with failures as infinitely slow the figures are the same")
	}
	tables = append(tables, clocks(step), ledger(step))
	for _, t := range []Table{causes(step), outages(step), events(step), staleAnswers(step), cacheTier(step), databases(step), hosts(step)} {
		if len(t.Rows) > 0 {
			tables = append(tables, t)
		}
	}
	return tables
}

func overview(s results.Step) Table {
	slo := Cell{Text: "-"}
	switch {
	case s.SLOBroken != "":
		slo = Cell{Text: "missed", Value: false, Notes: []string{s.SLOBroken}}
	case s.SLOMet:
		slo = Cell{Text: "met", Value: true}
	}
	outside := Blank()
	if s.Client.OutsideKnown {
		outside = Share(s.Client.OutsideShare)
	}
	t := Table{
		Title: "Load",
		Columns: []Column{
			{Name: "schedule"},
			{Name: "late ops", Key: "catch_up"},
			{Name: "seconds", Align: Right},
			{Name: "offered rps", Align: Right},
			{Name: "sent rps", Align: Right},
			{Name: "completed rps", Align: Right},
			{Name: "errors", Key: "errors_share", Align: Right},
			{Name: "in MB", Key: "bytes_in", Align: Right},
			{Name: "out MB", Key: "bytes_out", Align: Right},
			{Name: "SLO", Key: "slo_met"},
			{Key: "slo_broken", For: Machines},
			{Key: "client_cpu_share", For: Machines},
			{Key: "client_gc_pause_max_ns", For: Machines},
			{Key: "outside_share", For: Machines},
			{Key: "ops_hash", For: Machines},
			{Name: "valid"},
		},
		Rows: [][]Cell{{
			Text(s.Schedule), Text(s.CatchUp), Number(s.Seconds),
			Rate(s.OfferedRPS), Rate(s.SentRPS), Rate(s.CompletedRPS), Share(s.Ledger.ErrorRate()),
			megabytes(s.BytesIn), megabytes(s.BytesOut),
			slo, Text(s.SLOBroken),
			Share(s.Client.CPUShare), Nanoseconds(s.Client.GCPauseMaxNS), outside,
			Text(s.OpsHash), YesNo(s.Valid).With(s.Warnings...),
		}},
		Legend: []string{fmt.Sprintf("client: %s of its CPU, longest GC pause %s ms%s",
			percent(s.Client.CPUShare), Milliseconds(s.Client.GCPauseMaxNS), othersLegend(s.Client))},
	}
	if s.OpsHash != "" {
		t.Legend = append(t.Legend, "op sequence: "+s.OpsHash)
	}
	return t
}

// othersLegend tells what others took of the machine, where it was measured.
func othersLegend(c results.ClientUsage) string {
	if !c.OutsideKnown {
		return ""
	}
	return "; others took " + percent(c.OutsideShare) + " of the machine"
}

func megabytes(n int64) Cell { return Cell{Text: trimmed(float64(n)/1e6, 3), Value: n} }

// percentileColumns are the columns that latencyCells fills.
func percentileColumns() []Column {
	var columns []Column
	for _, name := range []string{"p50", "p90", "p95", "p99"} {
		columns = append(columns, Column{Name: name + " ms", Key: name + "_ns", Align: Right})
	}
	return append(columns, Column{Name: "p99.9 ms", Key: "p999_ns", Align: Right}, Column{Name: "max ms", Key: "max_ns", Align: Right})
}

func latencyCells(l results.Latency) []Cell {
	cells := []Cell{
		percentile(l.P50, l.Count, 0.50),
		percentile(l.P90, l.Count, 0.90),
		percentile(l.P95, l.Count, 0.95),
		percentile(l.P99, l.Count, 0.99),
		percentile(l.P999, l.Count, 0.999),
	}
	longest := Blank()
	switch {
	case l.Max != nil:
		longest = Nanoseconds(*l.Max)
	case l.Count > 0:
		longest = amongFailures()
	}
	if l.Clamped > 0 {
		longest = longest.With(fmt.Sprintf("%s samples were longer than the histogram's 60 s and count as 60 s", Count(l.Clamped).Text))
	}
	return append(cells, longest)
}

// The two ways to look at response times.
func successes(class results.OpStats) results.Latency { return class.ResponseNS }
func all(class results.OpStats) results.Latency       { return class.ResponseAll }

// opsTable has a row per op class, the most frequent first, and one for all of
// them where there are several.
func opsTable(s results.Step, title string, clock func(results.OpStats) results.Latency) Table {
	t := Table{
		Title: title,
		Columns: append([]Column{
			{Name: "op"},
			{Name: "count", Align: Right},
			{Name: "errors", Align: Right},
			{Name: "session lost", Align: Right},
		}, percentileColumns()...),
	}
	row := func(name string, class results.OpStats) {
		t.Rows = append(t.Rows, append([]Cell{
			Text(name), Count(class.Count), Count(class.Errors), Count(class.SessionLost),
		}, latencyCells(clock(class))...))
	}
	for _, name := range byCount(s.Ops, func(class results.OpStats) int64 { return class.Count }) {
		row(name, s.Ops[name])
	}
	if len(s.Ops) != 1 {
		row("all ops", results.OpStats{
			Count: s.Ledger.Scheduled, Errors: s.Ledger.Errors(), SessionLost: s.Ledger.SessionLost,
			ResponseNS: s.ResponseNS, ResponseAll: s.ResponseAll,
		})
	}
	if s.Ledger.SessionLost == 0 {
		t.setAudience("session_lost", Machines)
	}
	return t
}

// byCount sorts names by a number, the largest first, and then by name.
func byCount[T any](m map[string]T, count func(T) int64) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(count(m[b]), count(m[a])), cmp.Compare(a, b))
	})
}

func clocks(s results.Step) Table {
	t := Table{
		Title:   "Clocks",
		Columns: append([]Column{{Name: "clock"}, {Name: "samples", Align: Right}}, percentileColumns()...),
		Legend: []string{
			"lag: the client's own lateness; wait: intended to actual start; service: actual start to end; response: intended start to end",
		},
	}
	row := func(name string, l results.Latency) {
		t.Rows = append(t.Rows, append([]Cell{Text(name), Count(l.Count)}, latencyCells(l)...))
	}
	row("lag", s.LagNS)
	row("wait", s.WaitNS)
	row("service", s.ServiceNS)
	row("response", s.ResponseNS)
	if s.OwnLatencyNS != nil {
		row("engine's own", *s.OwnLatencyNS)
		t.Legend = append(t.Legend, "engine's own: what the engine under the driver would have reported as latency, for comparison: its clock starts late")
	}
	return t
}

// ledger shows the two sums to people and the terms to machines.
func ledger(s results.Step) Table {
	l := s.Ledger
	t := Table{
		Title: "Ledger",
		Rows:  [][]Cell{nil},
		Legend: []string{
			fmt.Sprintf("scheduled %s = sent %s + unsent %s + connect_error %s",
				Count(l.Scheduled).Text, Count(l.Sent).Text, Count(l.Unsent).Text, Count(l.ConnectError).Text),
			fmt.Sprintf("sent %s = ok %s + http_error %s + transport_error %s + timeout %s + in_flight %s",
				Count(l.Sent).Text, Count(l.OK).Text, Count(l.HTTPError).Text,
				Count(l.TransportError).Text, Count(l.Timeout).Text, Count(l.InFlight).Text),
		},
	}
	if s.ServerCount != nil {
		t.Legend = append(t.Legend, fmt.Sprintf("the target itself counted %s requests", Count(*s.ServerCount).Text))
	}
	if l.SessionLost > 0 {
		t.Legend = append(t.Legend, fmt.Sprintf("of http_error %s are session_lost, which do not count as errors", Count(l.SessionLost).Text))
	}
	if l.CheckFailed > 0 {
		t.Legend = append(t.Legend, fmt.Sprintf("of http_error %s are check_failed: complete responses that are not what the workload asks for", Count(l.CheckFailed).Text))
	}
	for _, term := range []struct {
		key   string
		count int64
	}{
		{"scheduled", l.Scheduled},
		{"sent", l.Sent},
		{"unsent", l.Unsent},
		{"connect_error", l.ConnectError},
		{"ok", l.OK},
		{"http_error", l.HTTPError},
		{"transport_error", l.TransportError},
		{"timeout", l.Timeout},
		{"in_flight", l.InFlight},
		{"session_lost", l.SessionLost},
		{"check_failed", l.CheckFailed},
	} {
		t.Columns = append(t.Columns, Column{Key: term.key, For: Machines})
		t.Rows[0] = append(t.Rows[0], Count(term.count))
	}
	if err := l.Check(); err != nil {
		t.Notes = append(t.Notes, err.Error())
	}
	return t
}

func causes(s results.Step) Table {
	t := Table{
		Title:   "Failures by cause",
		Columns: []Column{{Name: "cause"}, {Name: "failed", Align: Right}},
	}
	for _, cause := range byCount(s.Causes, func(n int64) int64 { return n }) {
		t.Rows = append(t.Rows, []Cell{Text(cause), Count(s.Causes[cause])})
	}
	return t
}

func outages(s results.Step) Table {
	t := Table{
		Title: "Outages",
		Columns: []Column{
			{Name: "from ms", Key: "from_ns", Align: Right},
			{Name: "to ms", Key: "to_ns", Align: Right},
			{Name: "length ms", Key: "length_ns", Align: Right},
			{Name: "failed", Align: Right},
		},
		Legend: []string{"from and to: intended times of the first and the last failure, since the start of the step"},
	}
	for _, o := range s.Outages {
		t.Rows = append(t.Rows, []Cell{instant(o.FromNS), instant(o.ToNS), Nanoseconds(o.ToNS - o.FromNS), Count(o.Failed)})
	}
	return t
}

func events(s results.Step) Table {
	t := Table{
		Title:   "Events",
		Columns: []Column{{Name: "at ms", Key: "at_ns", Align: Right}, {Name: "event"}},
	}
	for _, e := range s.Events {
		t.Rows = append(t.Rows, []Cell{instant(e.AtNS), Text(e.Text)})
	}
	return t
}

// instant is a point in time of a step. Points are compared with each other,
// so they keep every millisecond, unlike durations.
func instant(ns int64) Cell { return Cell{Text: Count((ns + 500_000) / 1_000_000).Text, Value: ns} }

func hosts(s results.Step) Table {
	t := Table{
		Title: "Hosts",
		Columns: []Column{
			{Name: "host"},
			{Name: "budget cores", Key: "cpu", Align: Right},
			{Name: "CPU s", Key: "cpu_seconds", Align: Right},
			{Name: "of budget", Key: "cpu_share", Align: Right},
			{Name: "throttled s", Key: "throttled_seconds", Align: Right},
			{Name: "throttled periods", Key: "throttled_share", Align: Right},
			{Name: "isolated"},
		},
	}
	for _, h := range s.Hosts {
		t.Rows = append(t.Rows, []Cell{
			Text(h.Host), Number(h.CPU), Number(h.CPUSeconds), Share(h.CPUShare),
			Number(h.ThrottledSeconds), Share(h.ThrottledShare), YesNo(h.Isolated),
		})
	}
	if slices.ContainsFunc(s.Hosts, func(h results.HostUsage) bool { return !h.Isolated }) {
		t.Notes = append(t.Notes, "hosts: not isolated")
	}
	return t
}
