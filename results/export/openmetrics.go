package export

import (
	"bytes"
	"io"
	"strconv"
	"strings"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/common/expfmt"
)

// OpenMetrics writes figures as gauges such as stagebench_p99_seconds{stage="lb"}, with durations in seconds. Values
// have three significant digits: GitLab shows each change of a text, and further digits always change. Figures that are
// not valid are left out, and stagebench_valid is 0 for their group.
func OpenMetrics(w io.Writer, all ...Metric) error {
	if len(all) == 0 {
		return ErrNothing
	}
	var names []string
	for _, m := range all {
		for _, l := range m.Labels {
			names = append(names, l.Name)
		}
	}
	registry := prometheus.NewRegistry()
	gauges := map[string]*prometheus.GaugeVec{}
	set := func(m Metric, name, doc string, value float64) error {
		g := gauges[name]
		if g == nil {
			g = prometheus.NewGaugeVec(prometheus.GaugeOpts{Name: name, Help: doc}, unique(names))
			gauges[name] = g
			if err := registry.Register(g); err != nil {
				return err
			}
		}
		labels := prometheus.Labels{}
		for _, name := range names {
			labels[labelName(name)] = "" // no label
		}
		for _, l := range m.Labels {
			labels[labelName(l.Name)] = strings.ToValidUTF8(l.Value, "")
		}
		g.With(labels).Set(value)
		return nil
	}
	for _, m := range all {
		valid := 0.0
		if m.measured() {
			valid = 1
			name, divisor := openMetricsName(m)
			value, err := strconv.ParseFloat(short(m.Value/divisor), 64)
			if err != nil {
				return err
			}
			if err := set(m, name, m.Doc, value); err != nil {
				return err
			}
		}
		if err := set(m, "stagebench_valid", "1 if the figures of the cell are valid, 0 if not.", valid); err != nil {
			return err
		}
	}
	families, err := registry.Gather()
	if err != nil {
		return err
	}
	var text bytes.Buffer
	for _, family := range families {
		if _, err := expfmt.MetricFamilyToOpenMetrics(&text, family); err != nil {
			return err
		}
	}
	if _, err := expfmt.FinalizeOpenMetrics(&text); err != nil {
		return err
	}
	_, err = w.Write(text.Bytes())
	return err
}

// openMetricsName returns the name of a gauge, with the base unit last, and what its value is divided by.
func openMetricsName(m Metric) (name string, divisor float64) {
	suffix, divisor := "_seconds", 1e9
	switch m.Unit {
	case PerSecond:
		suffix, divisor = "_requests_per_second", 1
	case Share:
		suffix, divisor = "_ratio", 1
	}
	return "stagebench_" + m.Name + suffix, divisor
}

// labelName returns the name of a label: "web_hosts" for the knob web.hosts.
func labelName(name string) string {
	return strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, name)
}

// unique returns the names of labels, each once.
func unique(names []string) (all []string) {
	known := map[string]bool{}
	for _, name := range names {
		if name = labelName(name); !known[name] {
			known[name] = true
			all = append(all, name)
		}
	}
	return all
}
