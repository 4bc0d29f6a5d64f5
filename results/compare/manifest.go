package compare

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Difference is something that the runs' manifests do not share.
type Difference struct {
	What   string   // field of the manifest, "config.plan", "engines.db"
	Values []string // by run, "-" where it has none
	// Breaks says that figures of runs that differ in it are figures of different
	// things: other data, another objective, another machine.
	Breaks bool
}

// breaking lists what must be the same for figures to be comparable, apart from
// what is meant to be compared.
func breaking() []string {
	return []string{
		"data", "config.slo", "config.mode", "config.plan", "config.connections", "config.connection_life",
		"config.rate_rps", "config.duration", "config.faults", "config.speed", "config.max_gap",
		"cpu_model", "cores", "budgets", "unit_cpu", "reserve_cpu", "os",
	}
}

// differences compares the manifests of the runs. Ids, times and command lines
// always differ, and the digests of topologies follow from the knobs.
func differences(runs []Run) []Difference {
	var all []map[string]string
	names := map[string]string{}
	for _, r := range runs {
		all = append(all, factsOf(r.Manifest))
		maps.Copy(names, all[len(all)-1])
	}
	var found []Difference
	for _, name := range slices.Sorted(maps.Keys(names)) {
		d := Difference{What: name, Breaks: slices.Contains(breaking(), name)}
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

// factsOf is a manifest as text by field.
func factsOf(m results.Manifest) map[string]string {
	facts := map[string]string{
		"seed": fmt.Sprint(m.Seed), "data": m.Data, "version": m.Version, "binary_sha256": m.BinarySHA, "go": m.Go, "os": m.OS,
		"kernel": m.Kernel, "cpu_model": m.CPUModel, "cores": fmt.Sprint(m.Cores), "budgets": m.Budgets,
		"unit_cpu": fmt.Sprint(m.UnitCPU), "reserve_cpu": fmt.Sprint(m.Reserve),
	}
	for role, engine := range m.Engines {
		facts["engines."+role] = engine
	}
	for name, value := range m.Config {
		if nested, ok := value.(map[string]any); ok && name == "knobs" {
			for knob, setting := range nested {
				facts["knobs."+knob] = settingText(setting)
			}
			continue
		}
		// JSON and not %v, whose order of a map's keys is not that of the file.
		text, err := json.Marshal(value)
		if err != nil {
			text = fmt.Append(nil, value)
		}
		facts["config."+name] = string(text)
	}
	return facts
}

// settingText is the value of a knob: that of all stages, or each stage's own.
func settingText(setting any) string {
	byStage, several := setting.(map[string]any)
	if !several {
		return fmt.Sprint(setting)
	}
	var parts []string
	for _, stage := range slices.Sorted(maps.Keys(byStage)) {
		parts = append(parts, fmt.Sprintf("%s:%v", stage, byStage[stage]))
	}
	return strings.Join(parts, " ")
}
