package cell

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"sync"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets/local"
	"github.com/stagebench/stagebench/workloads/driver"
)

// Durations that are the same in all cells.
const (
	opTimeout   = 5 * time.Second
	drainAtStop = 2 * time.Second
	dialTimeout = 2 * time.Second
)

// Bench measures the cells of a run. It measures them in passes: a pass visits each cell once. So the samples of a
// cell are spread over the run, because the speed of a shared machine moves within minutes and comes back, and the
// samples of two cells are neighbours in time.
type Bench struct {
	Driver      driver.Driver
	Plan        Plan
	SLO         results.SLO
	Seed        uint64
	Connections int
	// ConnectionLife is the maximum age of a connection; 0 = no limit.
	ConnectionLife time.Duration
	Log            *driver.TransportLog
	Run            *rundir.Dir
	Progress       Progress
	// Forecast says how long visits take, and learns it.
	Forecast *Forecast
	// Finished gets each cell after its last visit, if that went well; may be nil.
	Finished func(results.Cell)
	// Up starts a topology. The nodes write their logs to logDir.
	Up func(ctx context.Context, t sut.Topology, logDir string) (*local.System, error)
}

// Spec describes a cell to measure.
type Spec struct {
	Topology sut.Topology
	Load     load.Load
	// Attached is the target; nil = the topology is started.
	Attached *Attached
	// Fixed configures a measurement at one rate; nil = the capacity is measured.
	Fixed *Fixed
	// Variant is the last element of the cell's directory; "" = none. It tells cells of one stage and workload apart.
	Variant string
}

// stage returns the stage of the topology, or the name of another target.
func (s Spec) stage() string {
	if s.Attached != nil {
		return s.Attached.Name
	}
	return string(s.Topology.Stage)
}

// Measure measures cells, and calls save with the cells so far after each visit. An error of a cell is stored in the
// cell, and the others go on. Cancelling ctx ends the measurement early. Measure returns the cause of that, or the
// error of save.
func (b *Bench) Measure(ctx context.Context, specs []Spec, save func([]results.Cell) error) (err error) {
	var runs []*cellRun
	for _, s := range specs {
		runs = append(runs, b.open(s, path.Join(s.stage(), s.Load.Workload.Name(), s.Variant)))
	}
	defer func() { err = errors.Join(err, closeAll(context.WithoutCancel(ctx), runs)) }()
	visits := b.visits(specs)
	for k, v := range visits {
		r := runs[v.cell]
		b.Progress.Visit(fmt.Sprintf("%s, visit %d of %d", r.name(), v.n+1, b.visitsOf(r.Spec)), k, len(visits),
			b.expected(specs, visits[k:]))
		start := time.Now()
		if r.failed != nil {
			continue
		}
		err := r.visit(ctx, v.n, v.n == b.visitsOf(r.Spec)-1)
		switch {
		case ctx.Err() != nil: // which is no fault of the cell
		case err != nil:
			r.failed = errors.Join(err, r.stop(ctx))
		case b.searches(r.Spec):
			b.Forecast.Learn(r.Spec, v.n, time.Since(start))
		}
		if last := v.n == b.visitsOf(r.Spec)-1; last && err == nil && b.Finished != nil {
			c, _ := r.concluded()
			b.Finished(c)
		}
		if err := errors.Join(save(concluded(runs)), context.Cause(ctx)); err != nil {
			return err
		}
	}
	return save(concluded(runs))
}

// closeAll stops what still runs, all cells at the same time.
func closeAll(ctx context.Context, runs []*cellRun) error {
	errs := make([]error, len(runs))
	var all sync.WaitGroup
	for i, r := range runs {
		all.Go(func() { errs[i] = r.close(ctx) })
	}
	all.Wait()
	return errors.Join(errs...)
}

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

// Expected returns the expected duration of a measurement.
func (b *Bench) Expected(specs []Spec) time.Duration { return b.expected(specs, b.visits(specs)) }

func (b *Bench) expected(specs []Spec, visits []visit) (sum time.Duration) {
	for _, v := range visits {
		sum += b.Forecast.Visit(specs[v.cell], v.n)
	}
	return sum
}

// visitsOf returns the number of visits of a cell.
func (b *Bench) visitsOf(s Spec) int {
	if b.searches(s) {
		return b.Plan.Visits
	}
	return b.Plan.Repeats
}

// searches reports whether the capacity of a cell is measured.
func (b *Bench) searches(s Spec) bool { return s.Fixed == nil && s.Load.Times == nil }

// visit is the nth visit of a cell.
type visit struct{ cell, n int }

// visits returns all visits in order: in each pair of passes a random order of the cells, and then the reverse one.
// So a steady drift of the machine is the same for all cells.
func (b *Bench) visits(specs []Spec) (all []visit) {
	random := rand.New(rand.NewPCG(b.Seed, 0))
	var pass []int
	for n := range max(b.Plan.Visits, b.Plan.Repeats) {
		if n%2 == 0 {
			pass = random.Perm(len(specs))
		} else {
			slices.Reverse(pass)
		}
		for _, i := range pass {
			if n < b.visitsOf(specs[i]) {
				all = append(all, visit{i, n})
			}
		}
	}
	return all
}
