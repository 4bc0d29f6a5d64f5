package export

import (
	"cmp"
	"fmt"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Outcome is how a check ended.
type Outcome string

// The outcomes. Only Passed is a success.
const (
	Passed       Outcome = "passed"
	Failed       Outcome = "failed"
	Inconclusive Outcome = "inconclusive" // the measurement shows neither success nor failure
	Invalid      Outcome = "invalid"      // the measurement cannot be trusted, or there is none
)

// Check is one verdict.
type Check struct {
	Suite, Name string // "lb/read-heavy", "p99"
	Outcome     Outcome
	Message     string  // one line: why
	Text        string  // the details; may have several lines
	Seconds     float64 // how long it was measured; 0 = unknown
}

// Checks returns one verdict for each cell: whether it was measured, is valid and met its objective. A run that ended
// early has one more, which is inconclusive: cells may be missing.
//
// Those of a gate are one for each metric, and one for the gate.
func Checks(run results.Run) (all []Check) {
	if run.Gate != nil {
		return gateChecks(run)
	}
	varied := results.VariedKnobs(run.Cells)
	for _, c := range run.Cells {
		check := Check{
			Suite: Metric{Labels: labels(c, varied)}.Group(), Name: "objective " + c.SLO,
			Text: strings.Join(c.Warnings, "\n"),
		}
		check.Outcome, check.Message = judge(c)
		for _, s := range c.Steps {
			check.Seconds += s.Seconds
		}
		all = append(all, check)
	}
	if !run.Complete {
		all = append(all, Check{
			Suite: "run", Name: "complete", Outcome: Inconclusive,
			Message: "the run is not complete: cells may be missing",
		})
	}
	return all
}

// judge returns the verdict on a cell.
func judge(c results.Cell) (Outcome, string) {
	switch r := c.Reference; {
	case c.Error != "":
		return Invalid, c.Error
	case !c.Valid && len(c.Invalid) > 0:
		return Invalid, c.Invalid[0]
	case !c.Valid:
		return Invalid, "the cell is not valid"
	case c.Searched() && c.CapacityRPS > 0:
		return Passed, fmt.Sprintf("capacity %.0f requests/s", c.CapacityRPS)
	case c.Searched() && c.CapacityHigh > 0:
		return Failed, "no offered rate met the objective"
	case r == nil:
		return Invalid, "nothing was measured"
	case !r.SLOMet:
		return Failed, r.SLOBroken
	}
	return Passed, ""
}

// gateChecks returns the verdicts of a gate. What is not a pass is never a success: a metric without a verdict of its
// own has that of the gate.
func gateChecks(run results.Run) []Check {
	g := *run.Gate
	outcome := func(verdict string) Outcome {
		known := map[string]Outcome{
			results.GatePass: Passed, results.GateRegression: Failed, results.GateInvalid: Invalid,
		}[verdict]
		return cmp.Or(known, Inconclusive)
	}
	all := []Check{{
		Suite: "gate", Name: "verdict", Outcome: outcome(g.Verdict), Message: cmp.Or(g.Why, g.Verdict),
		Text: strings.Join(g.Warnings, "\n"),
	}}
	for _, c := range run.Cells {
		for _, s := range c.Steps {
			all[0].Seconds += s.Seconds
		}
	}
	for _, m := range g.Metrics {
		check := Check{
			Suite: "gate", Name: m.Name, Outcome: outcome(m.Verdict),
			Message: fmt.Sprintf("%s [%s, %s], margin %s", m.Text(m.Change), m.Text(m.Low), m.Text(m.High), m.Text(m.Worst())),
		}
		if g.Verdict == results.GateInvalid {
			check.Outcome = Invalid
		}
		all = append(all, check)
	}
	return all
}
