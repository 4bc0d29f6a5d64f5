package cell

import (
	"fmt"
	"math"
	"slices"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/capacity"
)

// concluded returns the cells that were visited so far, with their figures.
func concluded(runs []*cellRun) (visited []results.Cell) {
	var all []Joined
	for _, r := range runs {
		c, estimate := r.concluded()
		all = append(all, Joined{c, estimate})
	}
	return Conclude(all)
}

// Joined is a cell with the estimate of its capacity. The zero value is a cell that was never visited.
type Joined struct {
	Cell     results.Cell
	estimate capacity.Estimate
}

// Conclude returns the cells that were visited so far, in their order, with their gain over earlier ones.
func Conclude(all []Joined) (visited []results.Cell) {
	cells, estimates := make([]results.Cell, len(all)), make([]capacity.Estimate, len(all))
	for i, j := range all {
		cells[i], estimates[i] = j.Cell, j.estimate
	}
	for i := range cells {
		c := &cells[i]
		if p := results.PreviousStage(cells, i); p >= 0 && cells[p].Error == "" && c.Error == "" &&
			len(estimates[i].ByVisit) > 0 && len(estimates[p].ByVisit) > 0 {
			ratio := capacity.Ratio(estimates[i], estimates[p])
			c.Gain = &results.Gain{Over: cells[p].Stage, Ratio: ratio.Value, Low: ratio.Low, High: ratio.High}
		}
		if c.Error != "" || len(c.Steps) > 0 {
			visited = append(visited, *c)
		}
	}
	return visited
}

// concluded returns the cell with its figures so far.
func (r *cellRun) concluded() (results.Cell, capacity.Estimate) {
	c := r.cell
	c.Warnings, c.Steps = slices.Clone(c.Warnings), slices.Clone(c.Steps)
	if r.failed != nil {
		c.Error = r.failed.Error()
	}
	var estimate capacity.Estimate
	if r.searches(r.Spec) {
		var found bool
		if estimate, found = r.estimator.Estimate(); found {
			c.CapacityRPS = estimate.Value
		} else {
			c.CapacityRPS = estimate.Low
		}
		c.CapacityLow, c.CapacityHigh, c.Repeats = estimate.Low, estimate.High, estimate.ByVisit
		c.CapacityMethod = method(len(c.Repeats), found)
		if len(c.Peaks) > 0 {
			peak := capacity.Pool(c.Peaks)
			c.PeakRPS, c.PeakLow, c.PeakHigh = peak.Value, peak.Low, peak.High
		}
	}
	c.Reference = r.reference.step(r.SLO)
	conclude(&c, r.quiet)
	return c, estimate
}

// quiet holds what the steps say that can be trusted.
type quiet struct {
	estimator *capacity.Estimator
	peaks     []float64
}

// Doubtful steps are harmless if they are at most this share of all steps, and if capacity and peak without them differ
// by at most this share.
const (
	harmlessSteps  = 0.25
	harmlessChange = 0.05
)

// agrees reports whether capacity and peak of a cell are about the same without the doubtful steps.
func (q quiet) agrees(c *results.Cell, doubtful int) bool {
	if q.estimator == nil || len(q.peaks) == 0 || float64(doubtful) > harmlessSteps*float64(counted(c.Steps)) {
		return false
	}
	near := func(a, b float64) bool { return math.Abs(a-b) <= harmlessChange*b }
	estimate, found := q.estimator.Estimate()
	switch {
	case found != (len(c.Repeats) > 0) || !near(capacity.Pool(q.peaks).Value, c.PeakRPS):
		return false
	case !found: // the capacity lies outside the offered rates
		return near(estimate.Low, c.CapacityLow) && near(estimate.High, c.CapacityHigh)
	}
	return near(estimate.Value, c.CapacityRPS)
}

// method describes how the capacity was found.
func method(visits int, found bool) string {
	switch {
	case !found:
		return "not found: outside the offered rates, or not measured"
	case visits == 1:
		return "1 visit, 90 % interval"
	}
	return fmt.Sprintf("pooled, %d visits, 90 %% interval", visits)
}

// conclude sets limit and validity of a cell from its steps and its reference step.
func conclude(c *results.Cell, q quiet) {
	if c.Measured() {
		step := c.Reference
		if step == nil {
			step = &c.Steps[len(c.Steps)-1]
		}
		for i := range c.Hosts {
			c.Hosts[i].Isolated = i < len(step.Hosts) && step.Hosts[i].Isolated
		}
	}
	best, near := results.Best(c.Steps, c.CapacityRPS)
	switch {
	case !c.Searched():
		c.Limit = results.Limit{By: "unknown", Figure: "no limit was looked for"}
	case len(c.Steps) == 0:
		c.Limit = results.Limit{By: "unknown", Figure: "no step was measured"}
	case best == nil:
		c.Limit = results.Limit{By: "unknown", Figure: "no step that can be trusted met the objective"}
	default:
		c.Limit = results.FindLimit(*best)
	}
	if !near || !c.Searched() {
		best = nil
	}
	if c.Searched() {
		c.Demand = results.Demands(c.Reference, best, results.Peak(c.Steps))
	}
	judgeSteps(c, best, q)
	c.LimitedBy = c.Limit.By
}

// judgeSteps makes the cell invalid if one of its figures would differ without the steps that cannot be trusted,
// and copies the warnings of the steps that its figures depend on: the reference step, the joined steps near the
// capacity (nil = none), and all steps at the peak or around the capacity that are not trusted. If the client decided
// one of these and the cell is therefore invalid, the limit of the cell is the client.
func judgeSteps(c *results.Cell, near *results.Step, q quiet) {
	c.Valid = c.Error == ""
	if s := c.Reference; s != nil {
		c.Valid = c.Valid && s.Valid
		for _, w := range s.Warnings {
			add := c.Warnf
			if slices.Contains(s.Invalid, w) {
				add = c.Invalidatef
			}
			add("%s step at %.0f/s: %s", s.Purpose, s.OfferedRPS, w)
		}
	}
	if near != nil {
		for _, w := range near.Notes {
			c.Warnf("steps near the capacity: %s", w)
		}
	}
	var doubtful []*results.Step
	for i := range c.Steps {
		s := &c.Steps[i]
		if s.Trusted() || s.Repeated || s.Purpose != "peak" && s.Purpose != "capacity" {
			continue
		}
		doubtful = append(doubtful, s)
	}
	if len(doubtful) == 0 {
		return
	}
	first, add, consequence := doubtful[0], c.Invalidatef, ""
	if q.agrees(c, len(doubtful)) {
		add, consequence = c.Warnf, "; without them capacity and peak are the same"
	} else {
		for _, s := range doubtful {
			if limit := results.FindLimit(*s); limit.By == "client" {
				c.Limit = limit
			}
		}
	}
	add("%d of %d steps at the peak and around the capacity cannot be trusted%s; the first one, a %s step at %.0f/s: "+
		"%s", len(doubtful), counted(c.Steps), consequence, first.Purpose, first.OfferedRPS, first.Invalid[0])
}

// counted returns the number of steps that give capacity and peak.
func counted(steps []results.Step) (n int) {
	for _, s := range steps {
		if !s.Repeated && (s.Purpose == "peak" || s.Purpose == "capacity") {
			n++
		}
	}
	return n
}
