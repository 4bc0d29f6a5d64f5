package gate

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Slice is what one side measured in a block.
type Slice struct {
	Steady results.Step  // at the rate of the gate
	Burst  *results.Step // under overload; nil = not measured
	Speed  results.Speed // of the machine, before the slice; 0 = unknown
	// Figures are those of another tool, by name; nil = the slice was measured here. Then Steady and Burst are empty.
	Figures map[string]float64
}

// maxSpeedChange is the relative difference of the machine's speed of computing between the two slices of a block, from
// which the block does not count.
const maxSpeedChange = 0.10

// doubt returns why a block does not count, "" if it does. The reasons are facts about the client and the machine,
// never the figures that are compared.
func doubt(base, head Slice) string {
	for _, side := range []struct {
		name string
		Slice
	}{{"base", base}, {"head", head}} {
		// A step that is excused is one whose client was late, and percentiles are compared without its lag.
		if !side.Steady.Trusted() && len(side.Steady.Invalid) > 0 {
			return side.name + ": " + side.Steady.Invalid[0]
		}
	}
	a, b := base.Speed.Compute, head.Speed.Compute
	if a > 0 && b > 0 && max(a, b)/min(a, b) > 1+maxSpeedChange {
		return fmt.Sprintf("the speed of the machine changed by %.0f %% between its slices", 100*(max(a, b)/min(a, b)-1))
	}
	return ""
}

// Metric is a figure that a gate compares.
type Metric struct {
	Name, Title      string // "cpu", "CPU time per request"
	Unit             string // "ns", "rps" or "share"
	Higher           bool   // a higher figure is better
	Margin, Material float64
	of               func(Slice) (float64, bool)
}

// Metrics returns the default metrics. Each needs a number of requests in a slice, or a measurement that not every
// target offers: select with Measurable.
func Metrics() []Metric {
	return []Metric{
		{"cpu", "CPU time per request", "ns", false, 0.05, 0.02, CPU},
		{"p50", "median response time", "ns", false, 0.05, 0.02, percentile(0.50)},
		{"p95", "95th percentile of the response time", "ns", false, 0.05, 0.02, percentile(0.95)},
		{"p99", "99th percentile of the response time", "ns", false, 0.10, 0.02, percentile(0.99)},
		{"errors", "failed requests", results.GateShare, false, 0.005, 0.001, failed},
		{"burst", "throughput under overload", "rps", true, 0.05, 0.02, burst},
	}
}

// Foreign returns a metric of another tool. Its name is that in Slice.Figures.
func Foreign(name, unit string, higher bool) Metric {
	m := Metric{Name: name, Title: name, Unit: unit, Higher: higher, Margin: 0.05, Material: 0.02}
	if unit == results.GateShare {
		m.Margin, m.Material = 0.005, 0.001
	}
	m.of = func(s Slice) (float64, bool) {
		value, known := s.Figures[name]
		return value, known && (m.absolute() || value > 0)
	}
	return m
}

// spare is the share of the requests of the first slice that later slices may lack.
const spare = 0.15

// Measurable returns the metrics that slices such as this one have: a percentile needs ten requests beyond it.
func Measurable(metrics []Metric, s Slice) (measurable []Metric) {
	s.Steady.ResponseAll.Count = int64((1 - spare) * float64(s.Steady.ResponseAll.Count))
	for _, m := range metrics {
		if _, ok := m.value(s); ok {
			measurable = append(measurable, m)
		}
	}
	return measurable
}

// CPU returns the CPU time of all nodes per completed request, in nanoseconds.
func CPU(s Slice) (ns float64, known bool) {
	ns = 1e9 * s.Steady.CPUPerRequest()
	return ns, ns > 0
}

// percentile returns a percentile of the response time, in which failures are infinitely slow. The value of a failure
// is the timeout, because a response would have taken longer. The lag of the client is left out, if the step has the
// percentiles of all its requests without it.
func percentile(q float64) func(Slice) (float64, bool) {
	const beyond = 10
	return func(s Slice) (float64, bool) {
		l := s.Steady.ResponseAll
		if float64(l.Count)*(1-q) < beyond-1e-6 { // 1-q is not exact
			return 0, false
		}
		of := func(l results.Latency) *int64 { return map[float64]*int64{0.50: l.P50, 0.95: l.P95, 0.99: l.P99}[q] }
		value := of(l)
		if own := s.Steady.ResponseNoLag; own.Count == l.Count && of(own) != nil {
			value = of(own)
		}
		if value == nil {
			return float64(s.Steady.TimeoutNS), s.Steady.TimeoutNS > 0
		}
		return float64(*value), *value > 0
	}
}

// failed returns the share of requests that failed or lost their session.
func failed(s Slice) (float64, bool) {
	l := s.Steady.Ledger
	return float64(l.Errors()+l.SessionLost) / float64(max(l.Scheduled, 1)), l.Scheduled > 0
}

// burst returns the rate of successes under overload. If nothing succeeds, it is one in the whole burst, because the
// logarithm of 0 does not exist.
func burst(s Slice) (float64, bool) {
	if s.Burst == nil || s.Burst.Seconds == 0 {
		return 0, false
	}
	return max(s.Burst.GoodputRPS, 1/s.Burst.Seconds), true
}

func (m Metric) value(s Slice) (float64, bool) { return m.of(s) }

// absolute reports whether the metric is compared by its difference, and not by its ratio.
func (m Metric) absolute() bool { return m.Unit == results.GateShare }

// difference returns how much worse the head is: the logarithm of a ratio, or a difference of shares.
func (m Metric) difference(base, head float64) float64 {
	d := head - base
	if !m.absolute() {
		d = math.Log(head / base)
	}
	if m.Higher {
		return -d
	}
	return d
}

// distance returns the margin on the scale of difference.
func (m Metric) distance() float64 {
	if m.absolute() {
		return m.Margin
	}
	return math.Log1p(m.Margin)
}

// change returns the relative change of the figure for a mean difference, or for a share its change.
func (m Metric) change(difference float64) float64 {
	if m.Higher {
		difference = -difference
	}
	if m.absolute() {
		return difference
	}
	return math.Expm1(difference)
}

// worsening returns by how much the figure changed for the worse.
func (m Metric) worsening(g results.GateMetric) float64 {
	if m.Higher {
		return 1/(1+g.Change) - 1
	}
	return g.Change
}

// Described returns the metric without figures.
func (m Metric) Described() results.GateMetric {
	better := map[bool]string{false: "lower", true: "higher"}[m.Higher]
	return results.GateMetric{
		Name: m.Name, Title: m.Title, Unit: m.Unit, Better: better, Margin: m.Margin,
		Material: m.Material, Verdict: results.GateUndecided,
	}
}

// With returns the metrics with other bounds, such as "p99=20%,errors=1%". Set changes a bound of a metric, for example
// SetMargin. The bound of errors is a difference in percentage points.
func With(metrics []Metric, bounds string, set func(m *Metric, bound float64)) ([]Metric, error) {
	metrics = slices.Clone(metrics)
	for _, term := range strings.FieldsFunc(bounds, func(r rune) bool { return r == ',' }) {
		term = strings.TrimSpace(term)
		at := max(strings.LastIndex(term, "="), 0) // names of benchmarks may have one, too
		name, text := term[:at], strings.TrimPrefix(term[at:], "=")
		percent, err := strconv.ParseFloat(strings.TrimSuffix(text, "%"), 64)
		i := slices.IndexFunc(metrics, func(m Metric) bool { return m.Name == name })
		switch {
		case i < 0:
			return nil, fmt.Errorf("%q: there is no metric %q\nwant one of %s", term, name, joined(namesOf(metrics)))
		case err != nil || !strings.HasSuffix(text, "%") || !(percent > 0 && percent <= 1000):
			return nil, fmt.Errorf("%q: want a metric and a percentage above 0 such as %s=10%%", term, name)
		}
		set(&metrics[i], percent/100)
	}
	return metrics, nil
}

// SetMargin sets the change for the worse that a pass excludes.
func SetMargin(m *Metric, bound float64) { m.Margin, m.Material = bound, min(m.Material, bound) }

// SetMaterial sets the smallest change for the worse that is a regression. A pass excludes no smaller change.
func SetMaterial(m *Metric, bound float64) { m.Material, m.Margin = bound, max(m.Margin, bound) }

// Only returns the named metrics, in the order of metrics.
func Only(metrics []Metric, names []string) (chosen []Metric, err error) {
	for _, name := range names {
		if !slices.Contains(namesOf(metrics), name) {
			return nil, fmt.Errorf("there is no metric %q\nwant some of %s", name, joined(namesOf(metrics)))
		}
	}
	for _, m := range metrics {
		if slices.Contains(names, m.Name) {
			chosen = append(chosen, m)
		}
	}
	return chosen, nil
}

func namesOf(metrics []Metric) (names []string) {
	for _, m := range metrics {
		names = append(names, m.Name)
	}
	return names
}

func joined(parts []string) string { return strings.Join(parts, ", ") }
