package table

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Attack shows all figures of one step that was judged by an objective: rates and verdict, latencies by op class,
// the clocks and the ledger. If there is data for them, tables follow for failures,
// outages, events, the autoscaler, stale reads, the tiers that answered, the cache tier, database calls,
// the tiers' figures and the hosts.
func Attack(step results.Step, slo string) []Table {
	tables := []Table{overview(step, slo), opsTable(step, "Response time of successes", successes)}
	if step.Ledger.OK < step.Ledger.Scheduled {
		tables = append(tables, opsTable(step, "Response time, failures count as infinitely slow", all))
	} else {
		tables[1].Legend = append(tables[1].Legend,
			"no op failed, so there is no second table with failures as infinitely slow")
	}
	tables = append(tables, clocks(step), ledger(step))
	for _, t := range []Table{
		causes(step), outages(step), events(step), autoscaling(step), staleAnswers(step), sources(step), cacheTier(step),
		databases(step), figures(step), hosts(step),
	} {
		if len(t.Rows) > 0 {
			tables = append(tables, t)
		}
	}
	return tables
}

func overview(s results.Step, slo string) Table {
	priority := "ordinary"
	if s.Client.RealTime {
		priority = "real-time"
	}
	legend := []string{"objective (SLO): " + slo, fmt.Sprintf("client: %s of its CPU, %s priority, longest stall %s ms%s",
		percent(s.Client.CPUShare), priority, Milliseconds(s.Client.StallMaxNS), outsideLegend(s.Client))}
	legend = append(legend, fmt.Sprintf("bodies: %s MB received, %s MB sent",
		megabytes(s.BytesIn).Text, megabytes(s.BytesOut).Text))
	schedule := "schedule: " + s.Schedule
	if s.CatchUp != "" {
		schedule += "; late ops are sent: " + s.CatchUp
	}
	legend = append(legend, schedule)
	if j := s.Journeys; j != nil {
		legend = append(legend, fmt.Sprintf("journeys: %d began (%.1f/s), %d were in progress before, %d ended; %d of %d "+
			"planned ops were not due in the step, because earlier ops of their journeys took time or failed",
			j.Begun, float64(j.Begun)/max(s.Seconds, 1e-9), j.Joined, j.Ended, j.NotDue, j.PlannedOps))
	}
	if s.OpsHash != "" {
		legend = append(legend, "op sequence: "+s.OpsHash)
	}
	return newTable("Load", []column[results.Step]{
		machineOnly("schedule", func(s results.Step) Cell { return Text(s.Schedule) }),
		machineOnly("catch_up", func(s results.Step) Cell { return Text(s.CatchUp) }),
		numbers("seconds", "", func(s results.Step) Cell { return Number(s.Seconds) }),
		numbers("offered rps", "", func(s results.Step) Cell { return Rate(s.OfferedRPS) }),
		numbers("sent rps", "", func(s results.Step) Cell { return Rate(s.SentRPS) }),
		numbers("completed rps", "", func(s results.Step) Cell { return Rate(s.CompletedRPS) }),
		numbers("errors", "errors_share", func(s results.Step) Cell { return Share(s.Ledger.ErrorRate()) }),
		words("SLO", "slo_met", func(s results.Step) Cell {
			switch {
			case s.SLOBroken != "":
				return Cell{Text: "missed", Value: false, Notes: []string{s.SLOBroken}, Bad: true}
			case s.SLOMet:
				return Cell{Text: "met", Value: true}
			}
			return Blank()
		}),
		words("valid", "", func(s results.Step) Cell { return YesNo(s.Valid).With(doubts(s.Invalid, s.Warnings)...) }),
		machineOnly("bytes_in", func(s results.Step) Cell { return Count(s.BytesIn) }),
		machineOnly("bytes_out", func(s results.Step) Cell { return Count(s.BytesOut) }),
		machineOnly("slo_broken", func(s results.Step) Cell { return Text(s.SLOBroken) }),
		machineOnly("client_cpu_share", func(s results.Step) Cell { return Share(s.Client.CPUShare) }),
		machineOnly("client_gc_pause_max_ns", func(s results.Step) Cell { return Nanoseconds(s.Client.GCPauseMaxNS) }),
		machineOnly("outside_share", func(s results.Step) Cell {
			if !s.Client.OutsideKnown {
				return Blank()
			}
			return Share(s.Client.OutsideShare)
		}),
		machineOnly("ops_hash", func(s results.Step) Cell { return Text(s.OpsHash) }),
	}, []results.Step{s}, legend...)
}

// outsideLegend returns the CPU that something outside the run used, as far as it is known.
func outsideLegend(c results.ClientUsage) string {
	if !c.OutsideKnown || c.OutsideShare == 0 {
		return ""
	}
	return "; used outside the run: " + percent(c.OutsideShare) + " of the machine's CPU"
}

// latencyColumns returns the columns of a distribution.
func latencyColumns[R any](of func(R) results.Latency) []column[R] {
	return []column[R]{
		numbers("p50 ms", "p50_ns", func(r R) Cell { return p50(of(r)) }),
		numbers("p90 ms", "p90_ns", func(r R) Cell { return percentile(of(r).P90, of(r).Count, 0.90) }),
		numbers("p95 ms", "p95_ns", func(r R) Cell { return percentile(of(r).P95, of(r).Count, 0.95) }),
		numbers("p99 ms", "p99_ns", func(r R) Cell { return p99(of(r)) }),
		numbers("p99.9 ms", "p999_ns", func(r R) Cell { return percentile(of(r).P999, of(r).Count, 0.999) }),
		numbers("max ms", "max_ns", func(r R) Cell {
			l := of(r)
			cell := longest(l)
			if l.Max == nil && l.Count > 0 {
				cell = amongFailures()
			}
			if l.Clamped > 0 {
				cell = cell.With(Count(l.Clamped).Text + " samples above 60 s were recorded as 60 s")
			}
			return cell
		}),
	}
}

// namedOps is an op class with its name.
type namedOps struct {
	name string
	results.OpStats
}

// The response times of successes only, and of all ops.
func successes(o namedOps) results.Latency { return o.ResponseNS }
func all(o namedOps) results.Latency       { return o.ResponseAll }

// opsTable has one row per op class, the most frequent first. If there is not
// exactly one class, the last row is for all ops.
func opsTable(s results.Step, title string, clock func(namedOps) results.Latency) Table {
	var rows []namedOps
	for _, name := range byCount(s.Ops, func(class results.OpStats) int64 { return class.Count }) {
		rows = append(rows, namedOps{name, s.Ops[name]})
	}
	if len(s.Ops) != 1 {
		rows = append(rows, namedOps{"all ops", results.OpStats{
			Count: s.Ledger.Scheduled, Errors: s.Ledger.Errors(), SessionLost: s.Ledger.SessionLost,
			ResponseNS: s.ResponseNS, ResponseAll: s.ResponseAll,
		}})
	}
	var requests []string
	for _, o := range rows {
		if o.Request != "" {
			requests = append(requests, o.name+": "+o.Request)
		}
	}
	t := newTable(title, append([]column[namedOps]{
		identifying("op", func(o namedOps) Cell { return Text(o.name) }),
		machineOnly("request", func(o namedOps) Cell { return textOrNothing(o.Request) }),
		numbers("count", "", func(o namedOps) Cell { return Count(o.Count) }),
		numbers("errors", "", func(o namedOps) Cell { return Count(o.Errors) }),
		numbers("session lost", "", func(o namedOps) Cell { return Count(o.SessionLost) }),
	}, latencyColumns(clock)...), rows, requests...)
	if s.Ledger.SessionLost == 0 {
		t.setAudience(Machines, "session_lost")
	}
	return t
}

// byCount returns the keys sorted by count, the largest first, then by name.
func byCount[T any](m map[string]T, count func(T) int64) []string {
	return slices.SortedFunc(maps.Keys(m), func(a, b string) int {
		return cmp.Or(cmp.Compare(count(m[b]), count(m[a])), cmp.Compare(a, b))
	})
}

func clocks(s results.Step) Table {
	type clock struct {
		name string
		results.Latency
	}
	rows := []clock{{"lag", s.LagNS}, {"wait", s.WaitNS}, {"service", s.ServiceNS}, {"response", s.ResponseNS}}
	legend := []string{"lag: delay caused by the client; wait: intended to actual start; " +
		"service: actual start to end; response: intended start to end"}
	if s.OwnLatencyNS != nil {
		rows = append(rows, clock{"engine's own", *s.OwnLatencyNS})
		legend = append(legend, "engine's own: the latency that the load engine itself measured, for comparison; "+
			"its clock starts too late")
	}
	return newTable("Clocks", append([]column[clock]{
		identifying("clock", func(c clock) Cell { return Text(c.name) }),
		numbers("samples", "", func(c clock) Cell { return Count(c.Count) }),
	}, latencyColumns(func(c clock) results.Latency { return c.Latency })...), rows, legend...)
}

// ledger shows the two sums to people, and the single counts to machines.
func ledger(s results.Step) Table {
	n := func(n int64) string { return Count(n).Text }
	l := s.Ledger
	legend := []string{
		fmt.Sprintf("scheduled %s = sent %s + unsent %s + connect_error %s",
			n(l.Scheduled), n(l.Sent), n(l.Unsent), n(l.ConnectError)),
		fmt.Sprintf("sent %s = ok %s + http_error %s + transport_error %s + timeout %s + in_flight %s",
			n(l.Sent), n(l.OK), n(l.HTTPError), n(l.TransportError), n(l.Timeout), n(l.InFlight)),
	}
	if s.ServerCount != nil {
		legend = append(legend, "the target counted "+n(*s.ServerCount)+" requests")
	}
	if l.SessionLost > 0 {
		legend = append(legend, "http_error includes "+n(l.SessionLost)+" session_lost, which do not count as errors")
	}
	if l.CheckFailed > 0 {
		legend = append(legend, "http_error includes "+n(l.CheckFailed)+
			" check_failed: complete responses that failed the workload's check")
	}
	if statuses := byStatus(s.Statuses); statuses != "" {
		legend = append(legend, "responses by status: "+statuses)
	}
	if l.Redirected > 0 {
		legend = append(legend, "ok includes "+n(l.Redirected)+" redirected: responses that point to another place")
	}
	t := newTable("Ledger", []column[results.Ledger]{
		machineOnly("scheduled", func(l results.Ledger) Cell { return Count(l.Scheduled) }),
		machineOnly("sent", func(l results.Ledger) Cell { return Count(l.Sent) }),
		machineOnly("unsent", func(l results.Ledger) Cell { return Count(l.Unsent) }),
		machineOnly("connect_error", func(l results.Ledger) Cell { return Count(l.ConnectError) }),
		machineOnly("ok", func(l results.Ledger) Cell { return Count(l.OK) }),
		machineOnly("http_error", func(l results.Ledger) Cell { return Count(l.HTTPError) }),
		machineOnly("transport_error", func(l results.Ledger) Cell { return Count(l.TransportError) }),
		machineOnly("timeout", func(l results.Ledger) Cell { return Count(l.Timeout) }),
		machineOnly("in_flight", func(l results.Ledger) Cell { return Count(l.InFlight) }),
		machineOnly("session_lost", func(l results.Ledger) Cell { return Count(l.SessionLost) }),
		machineOnly("check_failed", func(l results.Ledger) Cell { return Count(l.CheckFailed) }),
		machineOnly("redirected", func(l results.Ledger) Cell { return Count(l.Redirected) }),
	}, []results.Ledger{l}, legend...)
	if err := l.Check(); err != nil {
		t.Notes = append(t.Notes, err.Error())
	}
	return t
}

// byStatus lists the number of responses by status: "200: 4,987, 503: 13".
func byStatus(counts map[int]int64) string {
	var parts []string
	for _, status := range slices.Sorted(maps.Keys(counts)) {
		parts = append(parts, fmt.Sprintf("%d: %s", status, Count(counts[status]).Text))
	}
	return strings.Join(parts, ", ")
}

func causes(s results.Step) Table {
	return newTable("Failures by cause", []column[string]{
		identifying("cause", Text),
		numbers("failed", "", func(cause string) Cell { return Count(s.Causes[cause]) }),
	}, byCount(s.Causes, func(n int64) int64 { return n }))
}

func outages(s results.Step) Table {
	return newTable("Outages", []column[results.Outage]{
		numbers("from ms", "from_ns", func(o results.Outage) Cell { return instant(o.FromNS) }),
		numbers("to ms", "to_ns", func(o results.Outage) Cell { return instant(o.ToNS) }),
		numbers("length ms", "length_ns", func(o results.Outage) Cell { return Nanoseconds(o.ToNS - o.FromNS) }),
		numbers("failed", "", func(o results.Outage) Cell { return Count(o.Failed) }),
	}, s.Outages, "from and to: intended times of the first and the last failure, since the start of the step")
}

func events(s results.Step) Table {
	return newTable("Events", []column[results.Event]{
		numbers("at ms", "at_ns", func(e results.Event) Cell { return instant(e.AtNS) }),
		words("event", "", func(e results.Event) Cell { return Text(e.Text) }),
	}, s.Events)
}

// autoscaling shows the decisions of the autoscaler, and what its hosts would cost.
func autoscaling(s results.Step) Table {
	a := s.Autoscaling
	if a == nil {
		return Table{}
	}
	type decision = results.ScalingDecision
	legend := fmt.Sprintf("web hosts existed for %.1f host-seconds; changes of direction: %d", a.HostSeconds, a.Reversals)
	return newTable("Autoscaling", []column[decision]{
		numbers("at ms", "at_ns", func(d decision) Cell { return instant(d.AtNS) }),
		numbers("from", "", func(d decision) Cell { return Count(int64(d.From)) }),
		numbers("to", "", func(d decision) Cell { return Count(int64(d.To)) }),
		words("reason", "", func(d decision) Cell { return Text(d.Reason) }),
		machineOnly("advice", func(d decision) Cell { return Count(int64(d.Advice)) }),
		machineOnly("metric", func(d decision) Cell {
			if d.Metric == nil {
				return Blank()
			}
			return Number(*d.Metric)
		}),
		machineOnly("limit", func(d decision) Cell { return Text(d.Limit) }),
		machineOnly("host_seconds", func(decision) Cell { return Number(a.HostSeconds) }),
		machineOnly("reversals", func(decision) Cell { return Count(int64(a.Reversals)) }),
	}, a.Decisions, legend)
}

func hosts(s results.Step) Table {
	type usage = results.HostUsage
	t := newTable("Hosts", []column[usage]{
		identifying("host", func(h usage) Cell { return Text(h.Host) }),
		numbers("budget cores", "cpu", func(h usage) Cell { return Number(h.CPU) }),
		numbers("CPU s", "cpu_seconds", func(h usage) Cell { return Number(h.CPUSeconds) }),
		numbers("of budget", "cpu_share", func(h usage) Cell { return Share(h.CPUShare) }),
		numbers("throttled s", "throttled_seconds", func(h usage) Cell { return Number(h.ThrottledSeconds) }),
		numbers("throttled periods", "throttled_share", func(h usage) Cell { return Share(h.ThrottledShare) }),
		words("isolated", "", func(h usage) Cell { return YesNo(h.Isolated) }),
	}, s.Hosts)
	if slices.ContainsFunc(s.Hosts, func(h results.HostUsage) bool { return !h.Isolated }) {
		t.Notes = append(t.Notes, "hosts: not isolated")
	}
	return t
}

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
