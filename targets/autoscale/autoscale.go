// Package autoscale decides how many hosts a tier should have. It is pure: a decision is a
// function of the configuration, the samples of all hosts, the history and the time. It reads
// no clock, changes no system and keeps no state: Decide returns the next history.
//
// The rule is that of the Horizontal Pod Autoscaler of Kubernetes, with its default behaviour:
//
//   - The advice is the number of hosts whose metric counts, times metric / target, rounded up.
//     If the metric is within 10 % of the target, the advice is the present number.
//   - The number grows at once, but by at most 4 hosts or 100 % within 15 s, whichever is more.
//   - It shrinks to the largest advice of the stabilisation window. The window is a maximum of
//     its advices, not a delay: each high advice keeps the hosts for one more window.
//   - A host that is not ready, or that has not been ready for a whole interval yet, has no
//     metric of its own. It counts as idle when the number would grow, so start-up costs do not
//     ask for further hosts. Otherwise it does not count.
//   - A ready host whose metric is missing counts as idle when the number would grow, and as
//     exactly at the target when it would shrink. These corrections never turn the direction.
//
// The present number is an advice, too: at the first decision, when a change is complete, after
// somebody else has changed the number, and after a gap of more than two intervals without a
// decision. So the number never shrinks because of one sample, also if a change takes longer
// than the window.
//
// CPU saturates: a host cannot use more than 100 % of its budget, however long its queue is. So
// the number grows by at most 100 / target in one step: with a target of 60 % by 1.67, from
// 1 host over 2 and 4 to 7. Requests in flight per host grow with the queue, so that metric has
// no such limit, and one step is enough.
//
// Sources: kubernetes.io/docs/tasks/run-application/horizontal-pod-autoscale ("Algorithm
// details", "Default behavior"), and k8s.io/kubernetes/pkg/controller/podautoscaler.
//
// All functions may be called concurrently. Percentages are numbers from 0 to 100.
package autoscale

import (
	"cmp"
	"math"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut/ladder"
)

// Constants of the rule. They are the defaults of Kubernetes, which nobody should need to change.
const (
	tolerance  = 0.1 // of the ratio of metric and target
	ratePeriod = 15 * time.Second
	rateHosts  = 4 // hosts added per ratePeriod, if that is more than rateShare
	rateShare  = 1 // share of the present hosts added per ratePeriod
)

// Config is the configuration of an autoscaler.
type Config struct {
	Metric   ladder.ScaleMetric
	Target   float64       // of the metric per host: percent of the CPU budget, or requests in flight
	Min, Max int           // hosts
	Window   time.Duration // stabilisation window
	Interval time.Duration // between two decisions, and the time over which the metric is averaged
}

// ConfigOf returns the configuration of the web hosts. on is false if they are not scaled
// automatically.
func ConfigOf(w ladder.Web) (c Config, on bool) {
	return Config{
		Metric: w.Autoscale, Target: w.ScaleTarget(), Min: w.AutoscaleMin, Max: w.AutoscaleMax,
		Window: w.AutoscaleWindow, Interval: w.AutoscaleInterval,
	}, w.Autoscale != ladder.ScaleOff
}

// Sample is what is known about one host at the time of a decision. A host that drains is no
// supply and has no Sample.
type Sample struct {
	Host string
	// ReadySince is the time since when the host serves; zero = it does not serve.
	ReadySince time.Time
	// Value is the mean of the metric over the last interval, in the unit of Config.Target;
	// nil = unknown.
	Value *float64
	// Size weights the value of hosts of unequal sizes; 0 = 1.
	Size float64
}

// Limit says what decided the number of hosts, besides the metric.
type Limit string

// The limits.
const (
	ByMetric    Limit = ""           // nothing else: the number is the advice
	ByTolerance Limit = "tolerance"  // the metric is near the target
	ByWindow    Limit = "window"     // a higher advice of the stabilisation window
	ByRate      Limit = "rate"       // so many hosts may be added in a short time
	ByMin       Limit = "min"        // Config.Min
	ByMax       Limit = "max"        // Config.Max
	ByNewHosts  Limit = "new hosts"  // hosts that are new, not ready or without a metric
	ByUnknown   Limit = "unknown"    // no host has a metric
	ByState     Limit = "not steady" // the system is in a state in which it must not be changed
)

// Decision is one decision.
type Decision struct {
	At     time.Time
	Hosts  int      // the present number
	Metric *float64 // mean per host over the hosts that have one; nil = unknown
	Advice int      // by the metric alone
	Wanted int      // number of hosts from now on
	Limit  Limit
	Reason string // in words
}

// Changes reports whether the decision changes the number of hosts.
func (d Decision) Changes() bool { return d.Wanted != d.Hosts }

// Count is a number of hosts at a time.
type Count struct {
	At    time.Time
	Hosts int
}

// History is what later decisions need to know about earlier ones. The zero value is that of a
// new autoscaler. Its slices are never modified.
type History struct {
	Advices []Count // of the last stabilisation window, oldest first
	Changes []Count // numbers of hosts added by each change of the last ratePeriod, below 0 = removed
	last    time.Time
	hosts   int // after the last decision or change
}

// Changed returns the history after a decision was carried out. now is when that was complete.
func (h History) Changed(from, to int, now time.Time) History {
	h.Changes = append(slices.Clone(h.Changes), Count{now, to - from})
	h.Advices = append(slices.Clone(h.Advices), Count{now, to})
	h.last, h.hosts = now, to
	return h
}

// Decide returns the decision for the present hosts, and the history for the next decision.
// Call History.Changed when the decision has been carried out, and not if that failed.
func Decide(c Config, hosts []Sample, h History, now time.Time) (Decision, History) {
	d := Decision{At: now, Hosts: len(hosts)}
	h = h.observe(c, d.Hosts, now)
	d.advise(c, hosts, now)
	h.Advices = append(h.Advices, Count{now, d.Advice})
	d.Wanted = d.Advice
	highest := d.Advice
	for _, a := range h.Advices {
		highest = max(highest, a.Hosts)
	}
	if kept := min(highest, d.Hosts); d.Wanted < kept {
		d.Wanted, d.Limit = kept, ByWindow
	}
	if most := h.rateLimit(d.Hosts); d.Wanted > most {
		d.Wanted, d.Limit = most, ByRate
	}
	if d.Wanted > c.Max {
		d.Wanted, d.Limit = c.Max, ByMax
	}
	if d.Wanted < c.Min {
		d.Wanted, d.Limit = c.Min, ByMin
	}
	d.Reason = d.reason(c, highest)
	return d, h
}

// observe forgets what is too old and, where the present number is an advice, adds it.
func (h History) observe(c Config, hosts int, now time.Time) History {
	within := func(all []Count, length time.Duration) []Count {
		return slices.DeleteFunc(slices.Clone(all), func(n Count) bool { return now.Sub(n.At) >= length })
	}
	h.Advices, h.Changes = within(h.Advices, c.Window), within(h.Changes, ratePeriod)
	if h.last.IsZero() || h.hosts != hosts || now.Sub(h.last) > 2*c.Interval {
		h.Advices = append(h.Advices, Count{now, hosts})
	}
	h.last, h.hosts = now, hosts
	return h
}

// rateLimit returns the highest number of hosts that the changes of the last ratePeriod permit.
func (h History) rateLimit(hosts int) int {
	start := hosts // at the begin of the period
	for _, change := range h.Changes {
		start -= change.Hosts
	}
	return max(hosts, start+rateHosts, start+rateShare*start)
}

// advise sets the metric, the advice and what limited it.
func (d *Decision) advise(c Config, hosts []Sample, now time.Time) {
	var measured, missing, unready load
	for _, s := range hosts {
		size := cmp.Or(s.Size, 1)
		switch {
		case s.ReadySince.IsZero(), now.Sub(s.ReadySince) < c.Interval:
			unready.add(size, 0)
		case s.Value == nil:
			missing.add(size, 0)
		default:
			measured.add(size, *s.Value)
		}
	}
	d.Advice = d.Hosts
	if measured.hosts == 0 {
		d.Limit = ByUnknown
		return
	}
	d.Metric = new(measured.mean())
	ratio := *d.Metric / c.Target
	counted := measured
	if ratio > 1 {
		counted.join(missing, 0)
		counted.join(unready, 0)
	} else {
		counted.join(missing, c.Target)
	}
	corrected := counted.mean() / c.Target
	advice := int(math.Ceil(corrected*float64(counted.hosts) - rounding))
	switch {
	case within(corrected):
		d.Limit = ByTolerance
		if !within(ratio) {
			d.Limit = ByNewHosts
		}
	case ratio > 1 != (corrected > 1), corrected < 1 && advice > d.Hosts, corrected > 1 && advice < d.Hosts:
		d.Limit = ByNewHosts
	default:
		d.Advice = advice
	}
}

// rounding is subtracted before a number of hosts is rounded up: 3 times 1.2 is a little more
// than 3.6 in floating point, and 2 times 1.5 must not be 4 hosts because of the last bit.
const rounding = 1e-9

func within(ratio float64) bool { return math.Abs(1-ratio) <= tolerance+rounding }

// load is the metric of several hosts.
type load struct {
	hosts      int
	size, used float64 // used is the sum of the values, weighted by size
}

func (l *load) add(size, value float64) {
	l.hosts++
	l.size += size
	l.used += size * value
}

// join adds hosts that all count with one value.
func (l *load) join(other load, value float64) {
	l.hosts += other.hosts
	l.size += other.size
	l.used += other.size * value
}

func (l *load) mean() float64 { return l.used / l.size }
