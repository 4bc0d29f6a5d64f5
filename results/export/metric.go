package export

import (
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Better is the direction in which a figure improves.
type Better string

// The directions, as benchstat names them.
const (
	Lower  Better = "lower"
	Higher Better = "higher"
)

// Unit is the unit of a figure.
type Unit string

// The units.
const (
	Nanoseconds Unit = "ns"
	PerSecond   Unit = "rps"
	Share       Unit = "share" // 1 = all
)

// Label says what a figure belongs to, such as stage=lb.
type Label struct{ Name, Value string }

// Metric is one figure.
type Metric struct {
	Labels []Label
	Name   string // "p99", without the unit
	Doc    string // one sentence
	Unit   Unit
	Better Better
	Value  float64
	// Low and High are the interval of the value; 0 = unknown.
	Low, High float64
	Samples   []float64 // the figure as each visit shows it; empty = only the value is known
	Invalid   []string  // why the figure is not valid; empty = it is valid
}

// Group returns the values of the labels: "lb/read-heavy".
func (m Metric) Group() string {
	var values []string
	for _, l := range m.Labels {
		values = append(values, l.Value)
	}
	return strings.Join(values, "/")
}

// measured reports whether the figure is valid. A figure that is not valid is left out where no mark can go with it.
func (m Metric) measured() bool { return len(m.Invalid) == 0 }

// Metrics returns the figures of a run, cell by cell. A figure that the run does not have is not among them.
func Metrics(run results.Run) (all []Metric) {
	varied := results.VariedKnobs(run.Cells)
	for _, c := range run.Cells {
		if c.Error != "" {
			continue
		}
		for _, m := range slices.Concat(rates(c), latencies(c), costs(c)) {
			m.Labels = labels(c, varied)
			if !c.Valid {
				m.Invalid = append([]string{}, c.Invalid...)
				if len(m.Invalid) == 0 {
					m.Invalid = []string{"the cell is not valid"}
				}
			}
			all = append(all, m)
		}
	}
	return all
}

// labels returns what tells a cell apart from the others of its run. Varied are the knobs that differ within a stage.
func labels(c results.Cell, varied []string) []Label {
	all := []Label{{"stage", c.Stage}, {"workload", c.Workload}, {"variant", c.Variant}}
	for _, name := range varied {
		all = append(all, Label{name, c.Knobs[name]})
	}
	return slices.DeleteFunc(all, func(l Label) bool { return l.Value == "" })
}

// rates returns the capacity and the peak. A capacity without an interval is only a bound: every offered rate met the
// objective, or none. So it is no figure.
func rates(c results.Cell) (all []Metric) {
	if c.HasInterval() && c.CapacityRPS > 0 {
		all = append(all, Metric{
			Name: "capacity", Unit: PerSecond, Better: Higher, Value: c.CapacityRPS, Low: c.CapacityLow, High: c.CapacityHigh,
			Samples: c.Repeats, Doc: "Highest rate at which the objective is met.",
		})
	}
	if c.PeakRPS > 0 {
		all = append(all, Metric{
			Name: "peak", Unit: PerSecond, Better: Higher, Value: c.PeakRPS, Low: c.PeakLow, High: c.PeakHigh,
			Samples: c.Peaks, Doc: "Rate of successes while more is offered than the system can do.",
		})
	}
	return all
}

// latencies returns the percentiles of the response time, and the errors.
func latencies(c results.Cell) (all []Metric) {
	if c.Reference == nil {
		return nil
	}
	const doc = " of the response time from the intended time; a failure counts as infinitely slow."
	for _, p := range []struct {
		name, title string
		of          func(results.Latency) *int64
	}{
		{"p50", "Median", func(l results.Latency) *int64 { return l.P50 }},
		{"p90", "90th percentile", func(l results.Latency) *int64 { return l.P90 }},
		{"p95", "95th percentile", func(l results.Latency) *int64 { return l.P95 }},
		{"p99", "99th percentile", func(l results.Latency) *int64 { return l.P99 }},
		{"p999", "99.9th percentile", func(l results.Latency) *int64 { return l.P999 }},
	} {
		value := p.of(c.Reference.ResponseAll)
		if value == nil {
			continue
		}
		m := Metric{Name: p.name, Unit: Nanoseconds, Better: Lower, Value: float64(*value), Doc: p.title + doc}
		for _, s := range visits(c) {
			if ns := p.of(s.ResponseAll); ns != nil {
				m.Samples = append(m.Samples, float64(*ns))
			}
		}
		all = append(all, m)
	}
	m := Metric{
		Name: "errors", Unit: Share, Better: Lower, Value: c.Reference.Ledger.ErrorRate(),
		Doc: "Share of the scheduled requests that failed.",
	}
	for _, s := range visits(c) {
		m.Samples = append(m.Samples, s.Ledger.ErrorRate())
	}
	return append(all, m)
}

// visits returns the trusted steps whose joined figures are the latency of the cell.
func visits(c results.Cell) (all []results.Step) {
	for _, s := range c.Steps {
		if s.Purpose == c.Reference.Purpose && !s.Repeated && s.Trusted() {
			all = append(all, s)
		}
	}
	return all
}

// costs returns the CPU time of all nodes for each request.
func costs(c results.Cell) []Metric {
	m := Metric{
		Name: "cpu_per_request", Unit: Nanoseconds, Better: Lower,
		Doc: "CPU time of all nodes for each completed request at the reference rate.",
	}
	if m.Value = cpu(c.Reference); m.Value == 0 {
		return nil
	}
	for _, s := range visits(c) {
		m.Samples = append(m.Samples, cpu(&s))
	}
	return []Metric{m}
}

// cpu returns the CPU time of all roles for each request in nanoseconds; 0 = unknown.
func cpu(s *results.Step) (ns float64) { return 1e9 * s.CPUPerRequest() }
