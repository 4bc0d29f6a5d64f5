package cell

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"slices"

	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/cmd/internal/machine"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/capacity"
	"github.com/stagebench/stagebench/results/gate"
)

// Repeat is what one repeat of a cell has measured, with processes of its own. As JSON it has everything that is needed
// to join it with other repeats as the visits of a run are joined.
type Repeat struct {
	Cell       results.Cell        `json:"cell"`
	Capacity   *capacity.Estimator `json:"capacity"`
	Quiet      *capacity.Estimator `json:"quiet_capacity"` // without the steps that cannot be trusted
	QuietPeaks []float64           `json:"quiet_peaks"`
	Reference  pool                `json:"reference"`
}

// RepeatName returns the name of the directory of a repeat, counted from 0, in a run directory.
func RepeatName(s Spec, n int) string {
	return path.Join(s.stage(), s.Load.Workload.Name(), s.Variant, fmt.Sprintf("repeat-%d", n+1))
}

// Repeat measures a cell once, with new processes. n is the number of the repeat, from 0: each has arrivals and ops of
// its own. Cancelling ctx ends it early, and Repeat then returns the cause of that.
func (b *Bench) Repeat(ctx context.Context, s Spec, n int) (Repeat, error) {
	r := b.open(s, RepeatName(s, n))
	err := r.failed
	if err == nil {
		err = r.visit(ctx, n, true)
	}
	err = errors.Join(err, r.close(context.WithoutCancel(ctx)), context.Cause(ctx))
	return Repeat{r.cell, r.estimator, r.quiet.estimator, r.quiet.peaks, r.reference}, err
}

// Join returns the cell of several repeats.
func (b *Bench) Join(s Spec, repeats []Repeat) Joined {
	if len(repeats) == 0 {
		return Joined{Cell: b.describe(s)}
	}
	r := b.newRun(s, b.describe(s))
	for _, p := range repeats {
		r.join(p)
	}
	c, estimate := r.concluded()
	return Joined{c, estimate}
}

// join adds a repeat to the measurement of its cell.
func (r *cellRun) join(p Repeat) {
	c, more := &r.cell, p.Cell
	c.Steps, c.Peaks = append(c.Steps, more.Steps...), append(c.Peaks, more.Peaks...)
	c.Speeds, c.Failovers = append(c.Speeds, more.Speeds...), append(c.Failovers, more.Failovers...)
	for _, w := range more.Warnings {
		if !slices.Contains(c.Warnings, w) {
			c.Warnings = append(c.Warnings, w)
		}
	}
	c.BringUpNS, c.WarmupCutNS = more.BringUpNS, max(c.WarmupCutNS, more.WarmupCutNS)
	maps.Copy(c.Versions, more.Versions)
	if more.Writes != nil {
		if c.Writes == nil {
			c.Writes = &results.Writes{}
		}
		c.Writes.Add(*more.Writes)
	}
	r.estimator.Append(p.Capacity)
	r.quiet.estimator.Append(p.Quiet)
	r.quiet.peaks = append(r.quiet.peaks, p.QuietPeaks...)
	r.reference.merge(p.Reference)
}

// Slices measures one configuration again and again, for the blocks of a gate. Each slice has restarted processes, if
// they are ours: two systems that stay up could differ for good in what happened at their start.
type Slices struct {
	r *cellRun
	// attached: the target was there before, and stays.
	attached bool
}

// Slices prepares the measurement of a configuration, and starts nothing. Close must be called.
func (b *Bench) Slices(s Spec) (*Slices, error) {
	s.Fixed = &Fixed{} // no search
	r := b.open(s, path.Join(s.stage(), s.Load.Workload.Name(), s.Variant))
	if r.failed != nil {
		return nil, errors.Join(r.failed, r.files.close())
	}
	return &Slices{r: r}, nil
}

// SlicesOf prepares the same for a target that is already there. The stepper belongs to the caller.
func (b *Bench) SlicesOf(s *Stepper, l load.Load, c results.Cell) *Slices {
	r := b.newRun(Spec{Load: l, Fixed: &Fixed{}}, c)
	r.stepper = s
	return &Slices{r: r, attached: true}
}

// Peak measures the throughput under overload: what a slice can do at most.
func (s *Slices) Peak(ctx context.Context) (rps float64, err error) {
	if err := s.begin(ctx, 0, s.r.Plan.ReferenceRPS); err != nil {
		return 0, err
	}
	rps, err = s.r.peak(ctx)
	return rps, errors.Join(err, s.end(ctx))
}

// Measure measures the nth slice, counted from 0: after a warm-up, a steady rate, and if burst is not 0, an overload.
// Slices of the same number have the same arrivals and ops, whatever they measure.
func (s *Slices) Measure(ctx context.Context, n int, rate, burst float64) (measured gate.Slice, err error) {
	r := s.r
	r.Fixed.RPS, r.Fixed.Duration = rate, r.Plan.Reference
	if err := s.begin(ctx, n, rate); err != nil {
		return measured, err
	}
	defer func() { err = errors.Join(err, s.end(ctx)) }()
	measured.Speed = r.cell.Speeds[len(r.cell.Speeds)-1]
	r.begin(steadily)
	steady, err := r.step(ctx, "reference", rate, r.Plan.Reference)
	if err != nil {
		return measured, err
	}
	if steady.result.Valid {
		r.reference.add(steady)
	}
	measured.Steady = steady.result
	if burst == 0 {
		return measured, nil
	}
	r.begin(search)
	overloaded, err := r.step(ctx, "peak", burst, cut+r.Plan.Peak)
	if err != nil {
		return measured, err
	}
	measured.Burst = &overloaded.result
	return measured, nil
}

// begin starts the target and warms it up.
func (s *Slices) begin(ctx context.Context, n int, rate float64) error {
	r := s.r
	// Before the system runs: after a start it is busy for a moment.
	r.cell.Speeds = append(r.cell.Speeds, machine.Calibrate())
	if !s.attached {
		if err := r.resume(ctx); err != nil {
			return err
		}
	}
	r.visits = n
	r.begin(warming)
	return r.warmUp(ctx, rate, r.Plan.WarmupSlices)
}

// end stops the target.
func (s *Slices) end(ctx context.Context) error {
	if s.attached {
		return nil
	}
	return s.r.stop(context.WithoutCancel(ctx))
}

// Cell returns the cell with all slices so far.
func (s *Slices) Cell() results.Cell {
	c, _ := s.r.concluded()
	return c
}

// Close stops the target if a slice was interrupted, and closes the files.
func (s *Slices) Close(ctx context.Context) error {
	if s.attached {
		return nil
	}
	return s.r.close(context.WithoutCancel(ctx))
}
