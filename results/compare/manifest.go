package compare

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Difference is a field in which the manifests of the runs differ.
type Difference struct {
	What   string   // field of the manifest, "config.plan", "engines.db"
	Values []string // by run, "-" = the run does not have the field
	// Breaks says that the figures of the runs are not comparable: for example other
	// data, another objective or another machine.
	Breaks bool
}

// breakingFields lists the fields that must be equal in comparable runs.
func breakingFields() []string {
	return []string{
		"data", "config.slo", "config.mode", "config.plan", "config.connections", "config.connection_life",
		"config.rate_rps", "config.duration", "config.faults", "config.speed", "config.max_gap",
		"cpu_model", "cores", "budgets", "unit_cpu", "reserve_cpu", "os",
	}
}

// differences compares the manifests of the runs. It ignores ids, times and
// command lines, which always differ, and topology digests, which follow from the
// knobs.
func differences(runs []Run) []Difference {
	var all []map[string]string
	names := map[string]string{}
	for _, r := range runs {
		all = append(all, factsOf(r.Manifest))
		maps.Copy(names, all[len(all)-1])
	}
	var found []Difference
	for _, name := range slices.Sorted(maps.Keys(names)) {
		d := Difference{What: name, Breaks: slices.Contains(breakingFields(), name)}
		for _, facts := range all {
			value, known := facts[name]
			if !known {
				value = "-"
			}
			d.Values = append(d.Values, value)
		}
		if differ(d.Values) {
			found = append(found, d)
		}
	}
	return found
}

func differ(values []string) bool { return len(slices.Compact(slices.Clone(values))) > 1 }

// factsOf returns the compared fields of a manifest as text, by name.
func factsOf(m results.Manifest) map[string]string {
	facts := map[string]string{
		"seed": fmt.Sprint(m.Seed), "data": m.Data, "version": m.Version, "binary_sha256": m.BinarySHA,
		"go": m.Go, "os": m.OS, "kernel": m.Kernel, "cpu_model": m.CPUModel, "cores": fmt.Sprint(m.Cores),
		"budgets": m.Budgets, "unit_cpu": fmt.Sprint(m.UnitCPU), "reserve_cpu": fmt.Sprint(m.Reserve),
	}
	for role, engine := range m.Engines {
		facts["engines."+role] = engine
	}
	for role, version := range m.Versions {
		facts["versions."+role] = version
	}
	for name, value := range m.Config {
		if nested, ok := value.(map[string]any); ok && name == "knobs" {
			for knob, setting := range nested {
				facts["knobs."+knob] = settingText(setting)
			}
			continue
		}
		// As JSON, the value reads as in manifest.json.
		var text strings.Builder
		encoder := json.NewEncoder(&text)
		encoder.SetEscapeHTML(false) // "p99<100ms"
		if err := encoder.Encode(value); err != nil {
			text.Reset()
			fmt.Fprint(&text, value)
		}
		facts["config."+name] = strings.TrimSpace(text.String())
	}
	return facts
}

// settingText returns the value of a knob as text: one value, or one per stage.
func settingText(setting any) string {
	byStage, isMap := setting.(map[string]any)
	if !isMap {
		return fmt.Sprint(setting)
	}
	var parts []string
	for _, stage := range slices.Sorted(maps.Keys(byStage)) {
		parts = append(parts, fmt.Sprintf("%s:%v", stage, byStage[stage]))
	}
	return strings.Join(parts, " ")
}
