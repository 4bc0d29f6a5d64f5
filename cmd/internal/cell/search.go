package cell

import (
	"context"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
)

// Search measures capacity, peak and latency of a target that is already there. It makes the visits of a plan one after
// the other. It calls save with the cell so far after each visit. If nothing succeeds at first, the cell has only this
// step, as its reference. Cancelling ctx ends the search early: Search then returns the cause, or else the error of
// save.
func Search(
	ctx context.Context, s *Stepper, l load.Load, plan Plan, seed uint64, c results.Cell, save func(results.Cell) error,
) error {
	b := &Bench{
		Plan: plan, SLO: s.SLO, Seed: seed, Progress: s.Progress,
		Forecast: &Forecast{plan: plan, learned: map[string]float64{}},
	}
	spec := Spec{Load: l}
	r := b.newRun(spec, c)
	r.stepper = s
	r.begin(warming)
	probe, err := r.step(ctx, "warmup", plan.ReferenceRPS, plan.WarmupSlice)
	if err == nil && probe.result.Ledger.OK == 0 {
		r.reference.add(probe) // nothing works: the search would only say so later
		measured, _ := r.concluded()
		return save(measured)
	}
	if err != nil {
		return err
	}
	visits := b.visits([]Spec{spec})
	for k, v := range visits {
		b.Progress.Visit(c.Stage+" "+c.Workload, k, len(visits), b.expected([]Spec{spec}, visits[k:]))
		start := time.Now()
		r.visits, r.repeated = v.n, 0
		err := r.measure(ctx, v.n == 0, k == len(visits)-1)
		measured, _ := r.concluded()
		if failed := save(measured); err == nil {
			err = failed
		}
		if err != nil {
			return err
		}
		b.Forecast.Learn(spec, v.n, time.Since(start))
	}
	return nil
}
