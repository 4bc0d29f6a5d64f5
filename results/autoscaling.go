package results

// Autoscaling is what an autoscaler did to the number of web hosts during a step.
type Autoscaling struct {
	// Decisions are those that changed the number, and those with another reason than the decision before.
	Decisions []ScalingDecision `json:"decisions"`
	// Supply is the number of hosts over time. The first entry is the number at the start of the step.
	Supply []Supply `json:"supply"`
	// HostSeconds is the time that hosts existed, summed over the hosts: what they would cost.
	HostSeconds float64 `json:"host_seconds"`
	Reversals   int     `json:"reversals"` // changes of direction
}

// ScalingDecision is one decision about the number of hosts.
type ScalingDecision struct {
	AtNS   int64    `json:"at_ns"` // since the start of the step
	From   int      `json:"from"`
	To     int      `json:"to"`               // equal to From: no change
	Advice int      `json:"advice"`           // by the metric alone
	Metric *float64 `json:"metric,omitempty"` // mean per host; nil = unknown
	Limit  string   `json:"limit,omitempty"`  // what else decided; "" = the metric alone
	Reason string   `json:"reason"`
}

// Supply is the number of hosts from a time on.
type Supply struct {
	AtNS    int64 `json:"at_ns"`   // since the start of the step
	Serving int   `json:"serving"` // hosts that get requests
	Hosts   int   `json:"hosts"`   // all hosts, also those that start, drain or are dead
}

// HostDemand is the number of hosts that the load needs from a time on: the fewest with which the objective is met.
type HostDemand struct {
	AtNS  int64
	Hosts int // at least 1
}

// NewAutoscaling returns what happened from the start of a step until a time. The supply is sorted by time, and may
// begin before the start. It returns nil if the supply at the start is unknown.
func NewAutoscaling(decisions []ScalingDecision, supply []Supply, untilNS int64) *Autoscaling {
	a := &Autoscaling{}
	for _, d := range decisions {
		if d.AtNS >= 0 && d.AtNS <= untilNS {
			a.Decisions = append(a.Decisions, d)
		}
	}
	for _, s := range supply {
		last := len(a.Supply) - 1
		switch {
		case s.AtNS > untilNS:
		case s.AtNS <= 0:
			s.AtNS = 0
			a.Supply = []Supply{s}
		case last < 0:
			return nil
		case s.Serving != a.Supply[last].Serving || s.Hosts != a.Supply[last].Hosts:
			a.Supply = append(a.Supply, s)
		}
	}
	if a.Supply == nil {
		return nil
	}
	for i, s := range a.Supply {
		end := untilNS
		if i+1 < len(a.Supply) {
			end = a.Supply[i+1].AtNS
		}
		a.HostSeconds += float64(s.Hosts) * float64(end-s.AtNS) / 1e9
	}
	a.Reversals = reversals(a.Decisions)
	return a
}

// reversals counts how often the number grew after it had shrunk, or shrank after it had grown.
func reversals(decisions []ScalingDecision) (n int) {
	last := 0
	for _, d := range decisions {
		if d.To == d.From {
			continue
		}
		if last != 0 && (last > 0) != (d.To > d.From) {
			n++
		}
		last = d.To - d.From
	}
	return n
}

// Elasticity compares supply and demand over a time. The definitions are those of SPEC RG-2016-01 ("Ready for Rain? A
// View from SPEC Research on the Future of Cloud Metrics"), accuracy relative to the demand and timeshare.
type Elasticity struct {
	Under      float64 // mean over the time of max(demand - supply, 0) / demand
	Over       float64 // mean over the time of max(supply - demand, 0) / demand
	UnderShare float64 // share of the time with fewer hosts than the demand
	OverShare  float64 // share of the time with more hosts than the demand
}

// Elasticity compares the hosts that served with a demand, from the first demand until a time. Both are sorted by time.
func (a Autoscaling) Elasticity(demand []HostDemand, untilNS int64) (e Elasticity) {
	if len(demand) == 0 || untilNS <= demand[0].AtNS {
		return e
	}
	now, d, s := demand[0].AtNS, 0, 0
	total := float64(untilNS - now)
	for now < untilNS {
		for d+1 < len(demand) && demand[d+1].AtNS <= now {
			d++
		}
		for s+1 < len(a.Supply) && a.Supply[s+1].AtNS <= now {
			s++
		}
		end := untilNS
		if d+1 < len(demand) {
			end = min(end, demand[d+1].AtNS)
		}
		if s+1 < len(a.Supply) {
			end = min(end, a.Supply[s+1].AtNS)
		}
		share := float64(end-now) / total
		wanted, serving := float64(demand[d].Hosts), float64(a.Supply[s].Serving)
		switch {
		case serving < wanted:
			e.Under += share * (wanted - serving) / wanted
			e.UnderShare += share
		case serving > wanted:
			e.Over += share * (serving - wanted) / wanted
			e.OverShare += share
		}
		now = end
	}
	return e
}

// Reaction is how long an autoscaler took to follow a change of the load.
type Reaction struct {
	DecidedNS *int64 // from the change of the load to the first decision in its direction; nil = there was none
	ReadyNS   *int64 // from the change of the load until as many hosts served as it needs; nil = never
}

// Reaction returns the reaction to a change of the demand, until the next one at untilNS.
func (a Autoscaling) Reaction(from, to HostDemand, untilNS int64) (r Reaction) {
	for _, d := range a.Decisions {
		if d.AtNS >= to.AtNS && d.AtNS < untilNS && d.To != d.From && (d.To > d.From) == (to.Hosts > from.Hosts) {
			r.DecidedNS = new(d.AtNS - to.AtNS)
			break
		}
	}
	for i, s := range a.Supply {
		ends := i+1 == len(a.Supply) || a.Supply[i+1].AtNS > to.AtNS // before that, it is not the supply of this demand
		enough := s.Serving >= to.Hosts
		if to.Hosts < from.Hosts {
			enough = s.Serving <= to.Hosts
		}
		if ends && enough && s.AtNS < untilNS {
			r.ReadyNS = new(max(s.AtNS-to.AtNS, 0))
			break
		}
	}
	return r
}

// join returns the autoscaling of two slices of a step. The second one begins at beginNS.
func (a *Autoscaling) join(o *Autoscaling, beginNS int64) *Autoscaling {
	if a == nil || o == nil {
		return nil
	}
	sum := Autoscaling{HostSeconds: a.HostSeconds + o.HostSeconds}
	sum.Decisions = append(sum.Decisions, a.Decisions...)
	for _, d := range o.Decisions {
		d.AtNS += beginNS
		sum.Decisions = append(sum.Decisions, d)
	}
	sum.Supply = append(sum.Supply, a.Supply...)
	for _, s := range o.Supply {
		s.AtNS += beginNS
		sum.Supply = append(sum.Supply, s)
	}
	sum.Reversals = reversals(sum.Decisions)
	return &sum
}
