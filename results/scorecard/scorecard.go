// Package scorecard answers the six questions of a web architect about a stage: availability, performance, reliability,
// scalability, manageability and cost.
//
// It computes from measured cells: one in which a host of each role is killed, one with the peak, and one with the peak
// of the same stage with one more web host. All functions are pure. Times are nanoseconds, CPU is counted in units.
package scorecard

import (
	"math"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Kill is a host that was killed while a fixed rate was measured.
type Kill struct {
	Role  string   // what the host does: "web", "primary"
	Host  string   // its name
	Nodes []string // on it
	AtNS  int64    // since the start of the step
}

// Loss is what a kill cost.
type Loss struct {
	Kill
	Failed int64 // requests
	Due    int64 // requests that were due until the next kill
	// OutageNS is the time from the first of these failures to the last one.
	OutageNS int64
	// ReplacedNS is the time until all nodes of the host served again; nil = not before the end of the step.
	ReplacedNS *int64
}

// Share is the share of the requests that failed.
func (l Loss) Share() float64 { return float64(l.Failed) / math.Max(float64(l.Due), 1) }

// Losses returns what each kill of a step cost. Kills are in order.
func Losses(step results.Step, kills []Kill) (losses []Loss) {
	end := int64(step.Seconds * 1e9)
	for i, k := range kills {
		next := end
		if i+1 < len(kills) {
			next = kills[i+1].AtNS
		}
		l := Loss{Kill: k, Due: int64(math.Round(step.OfferedRPS * float64(next-k.AtNS) / 1e9))}
		var first, last int64
		for _, o := range step.Outages {
			if causeOf(o, kills) != i {
				continue
			}
			if l.Failed == 0 {
				first = o.FromNS
			}
			last, l.Failed = o.ToNS, l.Failed+o.Failed
		}
		l.OutageNS = last - first
		l.ReplacedNS = replaced(step.Events, k)
		losses = append(losses, l)
	}
	return losses
}

// causeOf returns the index of the kill that caused an outage: the last one before it; -1 = none. Requests that were in
// flight at a kill were due before it, so an outage that lasts longer after the next kill than before it is due to
// that kill.
func causeOf(o results.Outage, kills []Kill) int {
	cause := -1
	for i, k := range kills {
		if k.AtNS <= o.FromNS || k.AtNS <= o.ToNS && o.ToNS-k.AtNS >= k.AtNS-o.FromNS {
			cause = i
		}
	}
	return cause
}

// replaced returns the time from a kill until all nodes of the host served again.
func replaced(events []results.Event, k Kill) *int64 {
	var longest int64
	for _, node := range k.Nodes {
		i := slices.IndexFunc(events, func(e results.Event) bool {
			return e.AtNS >= k.AtNS && strings.HasPrefix(e.Text, node+": serving on ")
		})
		if i < 0 {
			return nil
		}
		longest = max(longest, events[i].AtNS-k.AtNS)
	}
	return &longest
}

// Measured is what was measured of a stage.
type Measured struct {
	Kills  results.Cell // a fixed rate, while hosts were killed
	Killed []Kill
	Peak   results.Cell
	Larger *results.Cell // the peak with one more web host; nil = the stage has no balancer, or there is no CPU left
	Nodes  int
	Sizes  []float64 // of the hosts, in units
}

// Stage is the answers for one stage.
type Stage struct {
	Stage, Workload string
	Rate            float64 // at which hosts were killed, in requests per second
	Losses          []Loss

	// Performance.
	PeakRPS      float64
	P50NS, P99NS *int64 // at the reference rate

	// Reliability, over all kills.
	Acknowledged, Lost int64 // writes
	SessionsLost       int64
	StaleShare         float64 // of the reads

	// Gain is the peak with one more web host, divided by the peak; nil = not measured.
	Gain *float64

	// Manageability.
	Nodes, Hosts int
	BringUpNS    int64

	// Cost of a million requests at the peak; nil = the peak is unknown. Money is in the currency of the prices.
	HostHours, Money *float64

	Error string   // why the stage could not be measured
	Notes []string // doubts about the figures
}

// Of returns the answers for a stage.
func Of(m Measured, p Prices) Stage {
	s := Stage{
		Stage: m.Peak.Stage, Workload: m.Peak.Workload, PeakRPS: m.Peak.PeakRPS, Nodes: m.Nodes, Hosts: len(m.Sizes),
		BringUpNS: m.Kills.BringUpNS, Error: m.Peak.Error,
	}
	if s.Error == "" {
		s.Error = m.Kills.Error
	}
	if r := m.Peak.Reference; r != nil {
		s.P50NS, s.P99NS = r.ResponseAll.P50, r.ResponseAll.P99
	}
	if step := m.Kills.Reference; step != nil {
		s.Rate, s.Losses = step.OfferedRPS, Losses(*step, m.Killed)
		s.SessionsLost = step.Ledger.SessionLost
		if step.Stale != nil {
			s.StaleShare = step.Stale.Share()
		}
	}
	if w := m.Kills.Writes; w != nil {
		s.Acknowledged, s.Lost = w.Acknowledged, w.Lost
	}
	if m.Larger != nil && m.Larger.PeakRPS > 0 && s.PeakRPS > 0 {
		s.Gain = new(m.Larger.PeakRPS / s.PeakRPS)
	}
	if s.PeakRPS > 0 {
		hours, money := p.PerMillion(m.Sizes, s.PeakRPS)
		s.HostHours, s.Money = &hours, &money
	}
	s.Notes = notes(m)
	return s
}

// notes returns the doubts about the cells of a stage.
func notes(m Measured) (all []string) {
	for _, reason := range m.Peak.Invalid {
		all = append(all, "the peak: "+reason)
	}
	for _, reason := range m.Kills.Invalid {
		all = append(all, "while hosts were killed: "+reason)
	}
	if w := m.Kills.Writes; w != nil && w.Unread > 0 {
		all = append(all, "some records could not be read back: more writes may be lost than counted")
	}
	if m.Larger == nil {
		return all
	}
	if m.Larger.Error != "" {
		all = append(all, "one more web host: "+m.Larger.Error)
	}
	for _, reason := range m.Larger.Invalid {
		all = append(all, "one more web host: "+reason)
	}
	return all
}

// Worst returns the kill that cost the largest share of requests; ok is false if no host was killed.
func (s Stage) Worst() (worst Loss, ok bool) {
	for _, l := range s.Losses {
		if !ok || l.Share() > worst.Share() {
			worst, ok = l, true
		}
	}
	return worst, ok
}

// Slowest returns the longest time until a killed host was replaced; nil = one of them was not replaced in time, or
// none was killed.
func (s Stage) Slowest() (longest *int64) {
	for _, l := range s.Losses {
		if l.ReplacedNS == nil {
			return nil
		}
		if longest == nil || *l.ReplacedNS > *longest {
			longest = l.ReplacedNS
		}
	}
	return longest
}
