package results

import (
	"cmp"
	"fmt"
	"slices"
)

// A host is the limit if it used minLimitShare of its budget, or was throttled in minThrottledShare of its quota
// periods. If no host reaches either, the limit is unknown.
const (
	minLimitShare     = 0.70
	minThrottledShare = 0.50
)

// nearCapacity is the least rate of a step near the capacity, as a part of the capacity.
const nearCapacity = 0.85

// Best joins the trusted steps that met the SLO near the capacity: what the hosts used in them is the evidence for the
// limit of the cell. Without such a step it is the step at the highest rate that met the SLO; nil if there is none.
func Best(steps []Step, capacity float64) *Step {
	var highest *Step
	var near []Step
	for i := range steps {
		s := &steps[i]
		if s.Purpose == "warmup" || s.Repeated || !s.SLOMet || !s.Trusted() {
			continue
		}
		if highest == nil || s.OfferedRPS >= highest.OfferedRPS {
			highest = s
		}
		if s.OfferedRPS >= nearCapacity*capacity && s.OfferedRPS <= capacity/nearCapacity {
			near = append(near, *s)
		}
	}
	if len(near) == 0 {
		return highest
	}
	joined := Join(near)
	joined.SLOMet, joined.ByClient = true, false
	return &joined
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
		Figure: fmt.Sprintf("%.0f%% of its CPU, throttled in %.0f%% of periods",
			nearest.CPUShare*100, nearest.ThrottledShare*100),
	}
	if nearest.CPUShare >= minLimitShare || nearest.ThrottledShare >= minThrottledShare {
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
		all = append(all, tier{h, busiest.Role})
	}
	slices.SortStableFunc(all, func(a, b tier) int { return cmp.Compare(b.CPUShare, a.CPUShare) })
	roles := map[string]bool{}
	return slices.DeleteFunc(all, func(t tier) bool {
		known := roles[t.role]
		roles[t.role] = true
		return known
	})
}

// Demand is what a request costs a tier, on the host that is nearest to its budget.
type Demand struct {
	Host string `json:"host"`
	// CPUSeconds is the CPU time of that host per request near the capacity, AtReference at the reference rate: cold
	// caches and short quota slices make a request at a low rate more expensive. 0 = unknown.
	CPUSeconds  float64 `json:"cpu_s_per_request"`
	AtReference float64 `json:"cpu_s_per_request_at_reference"`
	BoundRPS    float64 `json:"bound_rps"` // rate at which this host would use its whole budget
}

// Demands returns the demand of each tier by its role, from the steps near the capacity (best) and the reference step.
func Demands(best, reference *Step) map[string]Demand {
	demands := map[string]Demand{}
	if best == nil {
		return demands
	}
	for _, t := range best.tiers() {
		requests := float64(best.Ledger.OK + best.Ledger.HTTPError)
		if requests == 0 || t.CPUSeconds == 0 {
			continue
		}
		d := Demand{Host: t.Host, CPUSeconds: t.CPUSeconds / requests, BoundRPS: best.CompletedRPS / t.CPUShare}
		if reference != nil {
			for _, h := range reference.Hosts {
				if n := reference.Ledger.OK + reference.Ledger.HTTPError; h.Host == t.Host && n > 0 {
					d.AtReference = h.CPUSeconds / float64(n)
				}
			}
		}
		demands[t.role] = d
	}
	return demands
}
