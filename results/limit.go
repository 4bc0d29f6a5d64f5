package results

import (
	"cmp"
	"fmt"
	"slices"
	"time"
)

// A host is the limit if it used minLimitShare of its budget, or was throttled in minThrottledShare of its quota
// periods, or if its threads waited for a CPU for minWait per request: bursts of a small host can break the objective
// although it has time to spare. If no host reaches any of these, the limit is unknown.
const (
	minLimitShare     = 0.70
	minThrottledShare = 0.50
	minWait           = 5 * time.Millisecond
)

// nearCapacity is the least rate of a step near the capacity, as a part of the capacity.
const nearCapacity = 0.85

// Best joins the trusted steps that met the SLO near the capacity: what the hosts used in them is the evidence for the
// limit of the cell. Without such a step, near is false, and the result is the step at the highest rate that met the
// SLO; nil if there is none.
func Best(steps []Step, capacity float64) (best *Step, near bool) {
	var parts []Step
	for i := range steps {
		s := &steps[i]
		if s.Purpose == "warmup" || s.Repeated || !s.SLOMet || !s.Trusted() {
			continue
		}
		if best == nil || s.OfferedRPS >= best.OfferedRPS {
			best = s
		}
		if s.OfferedRPS >= nearCapacity*capacity && s.OfferedRPS <= capacity/nearCapacity {
			parts = append(parts, *s)
		}
	}
	if len(parts) == 0 {
		return best, false
	}
	return new(Join(parts)), true
}

// FindLimit returns what limited a step: the client if the step failed because of it, otherwise the busiest role on
// the host that was nearest to its budget. Next is the role that would be the limit without that host's role.
func FindLimit(s Step) Limit {
	share := s.Client.CPUShare
	switch {
	case !s.SLOMet && share > maxClientCPU:
		return Limit{By: "client", Figure: fmt.Sprintf("%.0f%% of its CPU", share*100), CPUShare: share}
	case s.ByClient:
		return Limit{By: "client", Figure: "the objective was missed only because of its delays", CPUShare: share}
	}
	tiers := s.tiers()
	if len(tiers) == 0 {
		return Limit{By: "unknown", Figure: "no host was measured"}
	}
	nearest := tiers[0]
	l := Limit{
		By: "unknown", Host: nearest.Host, CPUShare: nearest.CPUShare,
		ThrottledShare: nearest.ThrottledShare, WaitNS: int64(nearest.wait),
		Figure: fmt.Sprintf("%.0f%% of its CPU, throttled in %.0f%% of periods, %.1f ms waiting for CPU per request",
			nearest.CPUShare*100, nearest.ThrottledShare*100, float64(nearest.wait)/1e6),
	}
	if nearest.CPUShare >= minLimitShare || nearest.ThrottledShare >= minThrottledShare || nearest.wait >= minWait {
		l.By = nearest.role
		if len(tiers) > 1 {
			l.Next, l.NextCPUShare = tiers[1].role, tiers[1].CPUShare
		}
	}
	return l
}

// tier is the host of a role that was nearest to its budget.
type tier struct {
	HostUsage
	role string
	wait time.Duration // of its threads for a CPU, per request
}

// tiers returns one host for each role, the nearest to its budget first. The role of a host is that of the node that
// used most of its CPU.
func (s Step) tiers() (all []tier) {
	for _, h := range s.Hosts {
		nodes := slices.DeleteFunc(slices.Clone(s.Nodes), func(n NodeUsage) bool { return n.Host != h.Host })
		if h.CPU <= 0 || len(nodes) == 0 {
			continue
		}
		busiest := slices.MaxFunc(nodes, func(a, b NodeUsage) int { return cmp.Compare(a.CPUSeconds, b.CPUSeconds) })
		var wait float64
		for _, n := range nodes {
			wait += n.WaitSeconds / float64(max(s.Ledger.OK+s.Ledger.HTTPError, 1))
		}
		all = append(all, tier{h, busiest.Role, time.Duration(wait * float64(time.Second))})
	}
	slices.SortStableFunc(all, func(a, b tier) int { return cmp.Compare(b.CPUShare, a.CPUShare) })
	roles := map[string]bool{}
	return slices.DeleteFunc(all, func(t tier) bool {
		known := roles[t.role]
		roles[t.role] = true
		return known
	})
}

// Demand is what a request costs a tier: the CPU time of all its nodes per request, in seconds; 0 = unknown. It depends
// on the rate. At a low rate, caches are cold and quota slices short; under overload, requests share commits and
// wake-ups.
type Demand struct {
	AtReference float64 `json:"cpu_s_per_request_at_reference"`
	AtCapacity  float64 `json:"cpu_s_per_request"`
	AtPeak      float64 `json:"cpu_s_per_request_at_peak"`
	// BoundRPS is the rate at which a host of the tier would use its whole budget, by the demand at the peak. Host is
	// the one that is nearest to it.
	BoundRPS float64 `json:"bound_rps"`
	Host     string  `json:"host"`
}

// Demands returns the demand of each tier by its role, from the joined steps at the reference rate, near the capacity
// and at the peak. Each of them may be nil.
func Demands(reference, near, peak *Step) map[string]Demand {
	demands := map[string]Demand{}
	atReference, atCapacity := reference.cpuByRole(), near.cpuByRole()
	for role, seconds := range peak.cpuByRole() {
		d := Demand{AtReference: atReference[role], AtCapacity: atCapacity[role], AtPeak: seconds}
		for _, h := range peak.Hosts {
			ofTier := slices.ContainsFunc(peak.Nodes, func(n NodeUsage) bool { return n.Host == h.Host && n.Role == role })
			if bound := peak.CompletedRPS / max(h.CPUShare, 1e-9); ofTier && (d.Host == "" || bound < d.BoundRPS) {
				d.Host, d.BoundRPS = h.Host, bound
			}
		}
		demands[role] = d
	}
	return demands
}

// Peak joins the trusted steps at the peak; nil if there are none.
func Peak(steps []Step) *Step {
	parts := slices.DeleteFunc(slices.Clone(steps), func(s Step) bool {
		return s.Purpose != "peak" || s.Repeated || !s.Trusted()
	})
	if len(parts) == 0 {
		return nil
	}
	return new(Join(parts))
}

// CPUPerRequest returns the CPU seconds of all nodes per completed request; 0 = unknown.
func (s *Step) CPUPerRequest() (sum float64) {
	if s == nil {
		return 0
	}
	for _, n := range s.Nodes {
		sum += n.CPUSeconds
	}
	return sum / float64(max(s.Ledger.OK+s.Ledger.HTTPError, 1))
}

// cpuByRole returns the CPU seconds of the nodes of each role per completed request; nil for no step.
func (s *Step) cpuByRole() map[string]float64 {
	if s == nil {
		return nil
	}
	seconds := map[string]float64{}
	for _, n := range s.Nodes {
		seconds[n.Role] += n.CPUSeconds / float64(max(s.Ledger.OK+s.Ledger.HTTPError, 1))
	}
	return seconds
}
