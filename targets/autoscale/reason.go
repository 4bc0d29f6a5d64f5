package autoscale

import (
	"fmt"
	"strconv"

	"github.com/stagebench/stagebench/sut/ladder"
)

// Hold returns the decision to change nothing because of the state of the system.
func Hold(hosts int, why string) Decision {
	return Decision{Hosts: hosts, Advice: hosts, Wanted: hosts, Limit: ByState, Reason: "no change while " + why}
}

// String returns the decision in words, for example
// "3 -> 5 hosts: CPU 90 % per host, target 60 %".
func (d Decision) String() string {
	if !d.Changes() {
		return fmt.Sprintf("%s: %s", hosts(d.Hosts), d.Reason)
	}
	return fmt.Sprintf("%d -> %s: %s", d.Hosts, hosts(d.Wanted), d.Reason)
}

// reason says why the decision is as it is. highest is the highest advice of the window.
func (d Decision) reason(c Config, highest int) string {
	if d.Metric == nil {
		text := "no host has a known metric"
		if d.Limit == ByUnknown {
			return text
		}
		return text + d.limit(c, highest)
	}
	return fmt.Sprintf("%s, target %s", c.per(*d.Metric), c.amount(c.Target)) + d.limit(c, highest)
}

// limit says what limited the number of hosts.
func (d Decision) limit(c Config, highest int) string {
	advised := fmt.Sprintf("; advice %d", d.Advice)
	switch d.Limit {
	case ByTolerance:
		return "; within 10 % of it"
	case ByWindow:
		return fmt.Sprintf("%s, but %d in the last %v", advised, highest, c.Window)
	case ByRate:
		return fmt.Sprintf("%s, but at most %d or 100 %% more per %v", advised, rateHosts, ratePeriod)
	case ByMin:
		return fmt.Sprintf("%s, minimum %d", advised, c.Min)
	case ByMax:
		return fmt.Sprintf("%s, maximum %d", advised, c.Max)
	case ByNewHosts:
		return "; new or silent hosts may change it"
	}
	return ""
}

// per is a value of the metric per host.
func (c Config) per(value float64) string {
	if c.Metric == ladder.ScaleCPU {
		return "CPU " + c.amount(value) + " per host"
	}
	return c.amount(value) + " requests in flight per host"
}

// amount is a value of the metric with its unit.
func (c Config) amount(value float64) string {
	if c.Metric == ladder.ScaleCPU {
		return strconv.FormatFloat(value, 'f', 0, 64) + " %"
	}
	return strconv.FormatFloat(value, 'f', 1, 64)
}

func hosts(n int) string {
	if n == 1 {
		return "1 host"
	}
	return strconv.Itoa(n) + " hosts"
}
