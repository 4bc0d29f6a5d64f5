package export

import (
	"encoding/json"
	"fmt"
	"io"
	"strconv"
)

// GitHubBenchmark writes the figures of one direction for github-action-benchmark. The action takes one direction per
// file, and compares by name with one previous commit, as a ratio. So the share of errors, which is usually 0, is not
// among them.
func GitHubBenchmark(w io.Writer, better Better, all ...Metric) error {
	type figure struct {
		Name  string  `json:"name"`
		Unit  string  `json:"unit"`
		Value float64 `json:"value"`
		Range string  `json:"range,omitempty"`
		Extra string  `json:"extra,omitempty"`
	}
	var figures []figure
	for _, m := range all {
		if m.Better != better || !m.measured() || m.Unit == Share || m.Value == 0 {
			continue
		}
		unit, divisor := "ms", 1e6
		if m.Unit == PerSecond {
			unit, divisor = "requests/s", 1
		}
		f := figure{Name: m.Group() + " " + m.Name, Unit: unit, Value: m.Value / divisor, Extra: m.Doc}
		if m.Low > 0 && m.High > 0 {
			f.Range = fmt.Sprintf("%s to %s", short(m.Low/divisor), short(m.High/divisor))
		}
		figures = append(figures, f)
	}
	if len(figures) == 0 {
		return ErrNothing
	}
	return encode(w, figures)
}

// Bencher writes figures as Bencher Metric Format. The names of measures end in their unit.
func Bencher(w io.Writer, all ...Metric) error {
	type figure struct {
		Value float64  `json:"value"`
		Low   *float64 `json:"lower_value,omitempty"`
		High  *float64 `json:"upper_value,omitempty"`
	}
	groups := map[string]map[string]figure{}
	for _, m := range all {
		if !m.measured() {
			continue
		}
		f := figure{Value: m.Value}
		if m.Low > 0 {
			f.Low = &m.Low
		}
		if m.High > 0 {
			f.High = &m.High
		}
		if groups[m.Group()] == nil {
			groups[m.Group()] = map[string]figure{}
		}
		groups[m.Group()][m.Name+"_"+string(m.Unit)] = f
	}
	if len(groups) == 0 {
		return ErrNothing
	}
	return encode(w, groups)
}

// encode writes a value as indented JSON.
func encode(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// short formats a number with three significant digits.
func short(x float64) string { return strconv.FormatFloat(x, 'g', 3, 64) }
