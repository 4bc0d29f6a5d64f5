package results

import (
	"fmt"
	"slices"
	"strings"
)

// SpeedOfMachine says in words how the speed of the machine moved over the visits of all cells; "" for fewer than two
// visits.
func SpeedOfMachine(cells []Cell) string {
	var all []Speed
	for _, c := range cells {
		all = append(all, c.Speeds...)
	}
	if len(all) < 2 {
		return ""
	}
	var parts []string
	for _, kind := range []struct {
		name string
		of   func(Speed) float64
	}{
		{"computing", func(s Speed) float64 { return s.Compute }},
		{"loopback", func(s Speed) float64 { return s.Loopback }},
		{"memory", func(s Speed) float64 { return s.Memory }},
	} {
		var values []float64
		for _, s := range all {
			values = append(values, kind.of(s))
		}
		slices.Sort(values)
		if median := values[len(values)/2]; median > 0 {
			parts = append(parts, fmt.Sprintf("%s %.2f to %.2f", kind.name, values[0]/median, values[len(values)-1]/median))
		}
	}
	return fmt.Sprintf("speed of the machine before the %d visits, as a multiple of the median: %s",
		len(all), strings.Join(parts, ", "))
}
