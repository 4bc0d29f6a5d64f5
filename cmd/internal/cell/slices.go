package cell

import (
	"context"
	"errors"

	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/cmd/internal/machine"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/gate"
)

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
	r := b.open(s)
	return &Slices{r: r}, errors.Join(r.failed, closedIf(r))
}

// closedIf closes the files of a cell that failed to open.
func closedIf(r *cellRun) error {
	if r.failed == nil {
		return nil
	}
	return r.files.close()
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
