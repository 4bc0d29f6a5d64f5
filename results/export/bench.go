package export

import (
	"io"
	"regexp"
	"strings"

	"golang.org/x/perf/benchfmt"
)

// Bench writes figures as Go benchmark text, which benchstat reads. Each line is one visit, so that benchstat gets
// samples. Its number of iterations is 1. Figures that are not valid have the configuration "valid: no", by which
// benchstat keeps them apart.
func Bench(w io.Writer, all ...Metric) error {
	if len(all) == 0 {
		return ErrNothing
	}
	out := benchfmt.NewWriter(w)
	known := map[string]bool{}
	for _, m := range all {
		unit := m.Name + "-" + string(m.Unit)
		if known[unit] {
			continue
		}
		known[unit] = true
		direction := &benchfmt.UnitMetadata{
			UnitMetadataKey: benchfmt.UnitMetadataKey{Unit: unit, Key: "better"}, OrigUnit: unit, Value: string(m.Better),
		}
		if err := out.Write(direction); err != nil {
			return err
		}
	}
	for i := 0; i < len(all); {
		group := 1
		for i+group < len(all) && all[i+group].Group() == all[i].Group() {
			group++
		}
		for _, line := range benchLines(all[i : i+group]) {
			if err := out.Write(line); err != nil {
				return err
			}
		}
		i += group
	}
	return nil
}

// benchLines returns the lines of one group of figures. A figure with fewer samples than others is not in the last
// lines.
func benchLines(group []Metric) (lines []*benchfmt.Result) {
	valid := "yes"
	if !group[0].measured() {
		valid = "no"
	}
	for _, m := range group {
		samples := m.Samples
		if len(samples) == 0 {
			samples = []float64{m.Value}
		}
		for i, value := range samples {
			if i == len(lines) {
				lines = append(lines, &benchfmt.Result{
					Config: []benchfmt.Config{{Key: "valid", Value: []byte(valid), File: true}},
					Name:   benchfmt.Name(benchName(m.Labels)), Iters: 1,
				})
			}
			lines[i].Values = append(lines[i].Values, benchfmt.Value{Value: value, Unit: m.Name + "-" + string(m.Unit)})
		}
	}
	return lines
}

// benchName returns the name of a benchmark: "Cell/stage=lb/workload=read-heavy". A name that ends in a number, such as
// web-1, would be read as one with GOMAXPROCS=1, so it gets an underscore there.
func benchName(labels []Label) string {
	name := "Cell"
	for _, l := range labels {
		name += "/" + l.Name + "=" + strings.Join(strings.Fields(strings.ReplaceAll(l.Value, "/", "_")), "_")
	}
	return regexp.MustCompile(`-(\d+)$`).ReplaceAllString(name, "_$1")
}
