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
// stale answers, what the cache tier did, what the databases were asked, other declared
// figures, and the use of the hosts.
func Attack(step results.Step) []Table {
	tables := []Table{overview(step), opsTable(step, "Response time of successes", successes)}
	if step.Ledger.OK < step.Ledger.Scheduled {
		tables = append(tables, opsTable(step, "Response time, failures as infinitely slow", all))
	} else {
		tables[1].Legend = append(tables[1].Legend, "no op failed: with failures as infinitely slow the figures are the same")
	}
	tables = append(tables, clocks(step), ledger(step))
	for _, t := range []Table{
		causes(step), outages(step), events(step), staleAnswers(step), cacheTier(step), databases(step), figures(step), hosts(step),
	} {
		if len(t.Rows) > 0 {
			tables = append(tables, t)
		}
	}
	return tables
}

func overview(s results.Step) Table {
	legend := []string{fmt.Sprintf("client: %s of its CPU, longest GC pause %s ms%s",
		percent(s.Client.CPUShare), Milliseconds(s.Client.GCPauseMaxNS), othersLegend(s.Client))}
	if s.OpsHash != "" {
		legend = append(legend, "op sequence: "+s.OpsHash)
	}
	return New("Load", []Field[results.Step]{
		Words("schedule", "", func(s results.Step) Cell { return Text(s.Schedule) }),
		Words("late ops", "catch_up", func(s results.Step) Cell { return Text(s.CatchUp) }),
		Numbers("seconds", "", func(s results.Step) Cell { return Number(s.Seconds) }),
		Numbers("offered rps", "", func(s results.Step) Cell { return Rate(s.OfferedRPS) }),
		Numbers("sent rps", "", func(s results.Step) Cell { return Rate(s.SentRPS) }),
		Numbers("completed rps", "", func(s results.Step) Cell { return Rate(s.CompletedRPS) }),
		Numbers("errors", "errors_share", func(s results.Step) Cell { return Share(s.Ledger.ErrorRate()) }),
		Numbers("in MB", "bytes_in", func(s results.Step) Cell { return megabytes(s.BytesIn) }),
		Numbers("out MB", "bytes_out", func(s results.Step) Cell { return megabytes(s.BytesOut) }),
		Words("SLO", "slo_met", func(s results.Step) Cell {
			switch {
			case s.SLOBroken != "":
				return Cell{Text: "missed", Value: false, Notes: []string{s.SLOBroken}}
			case s.SLOMet:
				return Cell{Text: "met", Value: true}
			}
			return Blank()
		}),
		MachineOnly("slo_broken", func(s results.Step) Cell { return Text(s.SLOBroken) }),
		MachineOnly("client_cpu_share", func(s results.Step) Cell { return Share(s.Client.CPUShare) }),
		MachineOnly("client_gc_pause_max_ns", func(s results.Step) Cell { return Nanoseconds(s.Client.GCPauseMaxNS) }),
		MachineOnly("outside_share", func(s results.Step) Cell {
			if !s.Client.OutsideKnown {
				return Blank()
			}
			return Share(s.Client.OutsideShare)
		}),
		MachineOnly("ops_hash", func(s results.Step) Cell { return Text(s.OpsHash) }),
		Words("valid", "", func(s results.Step) Cell { return YesNo(s.Valid).With(s.Warnings...) }),
	}, []results.Step{s}, legend...)
}

// othersLegend tells what others took of the machine, where it was measured.
func othersLegend(c results.ClientUsage) string {
	if !c.OutsideKnown {
		return ""
	}
	return "; others took " + percent(c.OutsideShare) + " of the machine"
}

// latencyFields are the columns of a distribution.
func latencyFields[R any](of func(R) results.Latency) []Field[R] {
	return []Field[R]{
		Numbers("p50 ms", "p50_ns", func(r R) Cell { return p50(of(r)) }),
		Numbers("p90 ms", "p90_ns", func(r R) Cell { return percentile(of(r).P90, of(r).Count, 0.90) }),
		Numbers("p95 ms", "p95_ns", func(r R) Cell { return percentile(of(r).P95, of(r).Count, 0.95) }),
		Numbers("p99 ms", "p99_ns", func(r R) Cell { return p99(of(r)) }),
		Numbers("p99.9 ms", "p999_ns", func(r R) Cell { return percentile(of(r).P999, of(r).Count, 0.999) }),
		Numbers("max ms", "max_ns", func(r R) Cell {
			l := of(r)
			cell := longest(l)
			if l.Max == nil && l.Count > 0 {
				cell = amongFailures()
			}
			if l.Clamped > 0 {
				cell = cell.With(fmt.Sprintf("%s samples were longer than the histogram's 60 s and count as 60 s", Count(l.Clamped).Text))
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

// The two ways to look at response times.
func successes(o namedOps) results.Latency { return o.ResponseNS }
func all(o namedOps) results.Latency       { return o.ResponseAll }

// opsTable has a row per op class, the most frequent first, and one for all of
// them where there are several.
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
	t := New(title, append([]Field[namedOps]{
		Words("op", "", func(o namedOps) Cell { return Text(o.name) }),
		Numbers("count", "", func(o namedOps) Cell { return Count(o.Count) }),
		Numbers("errors", "", func(o namedOps) Cell { return Count(o.Errors) }),
		Numbers("session lost", "", func(o namedOps) Cell { return Count(o.SessionLost) }),
	}, latencyFields(clock)...), rows)
	if s.Ledger.SessionLost == 0 {
		t.setAudience(Machines, "session_lost")
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
	type clock struct {
		name string
		results.Latency
	}
	rows := []clock{{"lag", s.LagNS}, {"wait", s.WaitNS}, {"service", s.ServiceNS}, {"response", s.ResponseNS}}
	legend := []string{"lag: the client's own lateness; wait: intended to actual start; " +
		"service: actual start to end; response: intended start to end"}
	if s.OwnLatencyNS != nil {
		rows = append(rows, clock{"engine's own", *s.OwnLatencyNS})
		legend = append(legend, "engine's own: what the engine under the driver would have reported as latency, "+
			"for comparison: its clock starts late")
	}
	return New("Clocks", append([]Field[clock]{
		Words("clock", "", func(c clock) Cell { return Text(c.name) }),
		Numbers("samples", "", func(c clock) Cell { return Count(c.Count) }),
	}, latencyFields(func(c clock) results.Latency { return c.Latency })...), rows, legend...)
}

// ledger shows the two sums to people and the terms to machines.
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
		legend = append(legend, fmt.Sprintf("the target itself counted %s requests", n(*s.ServerCount)))
	}
	if l.SessionLost > 0 {
		legend = append(legend, fmt.Sprintf("of http_error %s are session_lost, which do not count as errors", n(l.SessionLost)))
	}
	if l.CheckFailed > 0 {
		legend = append(legend, fmt.Sprintf("of http_error %s are check_failed: complete responses that are not what the workload asks for",
			n(l.CheckFailed)))
	}
	t := New("Ledger", []Field[results.Ledger]{
		MachineOnly("scheduled", func(l results.Ledger) Cell { return Count(l.Scheduled) }),
		MachineOnly("sent", func(l results.Ledger) Cell { return Count(l.Sent) }),
		MachineOnly("unsent", func(l results.Ledger) Cell { return Count(l.Unsent) }),
		MachineOnly("connect_error", func(l results.Ledger) Cell { return Count(l.ConnectError) }),
		MachineOnly("ok", func(l results.Ledger) Cell { return Count(l.OK) }),
		MachineOnly("http_error", func(l results.Ledger) Cell { return Count(l.HTTPError) }),
		MachineOnly("transport_error", func(l results.Ledger) Cell { return Count(l.TransportError) }),
		MachineOnly("timeout", func(l results.Ledger) Cell { return Count(l.Timeout) }),
		MachineOnly("in_flight", func(l results.Ledger) Cell { return Count(l.InFlight) }),
		MachineOnly("session_lost", func(l results.Ledger) Cell { return Count(l.SessionLost) }),
		MachineOnly("check_failed", func(l results.Ledger) Cell { return Count(l.CheckFailed) }),
	}, []results.Ledger{l}, legend...)
	if err := l.Check(); err != nil {
		t.Notes = append(t.Notes, err.Error())
	}
	return t
}

func causes(s results.Step) Table {
	return New("Failures by cause", []Field[string]{
		Words("cause", "", Text),
		Numbers("failed", "", func(cause string) Cell { return Count(s.Causes[cause]) }),
	}, byCount(s.Causes, func(n int64) int64 { return n }))
}

func outages(s results.Step) Table {
	return New("Outages", []Field[results.Outage]{
		Numbers("from ms", "from_ns", func(o results.Outage) Cell { return instant(o.FromNS) }),
		Numbers("to ms", "to_ns", func(o results.Outage) Cell { return instant(o.ToNS) }),
		Numbers("length ms", "length_ns", func(o results.Outage) Cell { return Nanoseconds(o.ToNS - o.FromNS) }),
		Numbers("failed", "", func(o results.Outage) Cell { return Count(o.Failed) }),
	}, s.Outages, "from and to: intended times of the first and the last failure, since the start of the step")
}

func events(s results.Step) Table {
	return New("Events", []Field[results.Event]{
		Numbers("at ms", "at_ns", func(e results.Event) Cell { return instant(e.AtNS) }),
		Words("event", "", func(e results.Event) Cell { return Text(e.Text) }),
	}, s.Events)
}

func hosts(s results.Step) Table {
	t := New("Hosts", []Field[results.HostUsage]{
		Words("host", "", func(h results.HostUsage) Cell { return Text(h.Host) }),
		Numbers("budget cores", "cpu", func(h results.HostUsage) Cell { return Number(h.CPU) }),
		Numbers("CPU s", "cpu_seconds", func(h results.HostUsage) Cell { return Number(h.CPUSeconds) }),
		Numbers("of budget", "cpu_share", func(h results.HostUsage) Cell { return Share(h.CPUShare) }),
		Numbers("throttled s", "throttled_seconds", func(h results.HostUsage) Cell { return Number(h.ThrottledSeconds) }),
		Numbers("throttled periods", "throttled_share", func(h results.HostUsage) Cell { return Share(h.ThrottledShare) }),
		Words("isolated", "", func(h results.HostUsage) Cell { return YesNo(h.Isolated) }),
	}, s.Hosts)
	if slices.ContainsFunc(s.Hosts, func(h results.HostUsage) bool { return !h.Isolated }) {
		t.Notes = append(t.Notes, "hosts: not isolated")
	}
	return t
}
