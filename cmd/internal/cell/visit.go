package cell

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/machine"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/capacity"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/local"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/pace"
)

// cellRun is the measurement of one cell, over all its visits.
type cellRun struct {
	*Bench
	Spec
	cell      results.Cell
	failed    error // why the cell cannot be measured
	logs      string
	files     files
	estimator *capacity.Estimator
	quiet     quiet
	reference pool
	visits    int    // before this one
	repeated  int    // steps of this visit that were measured again
	slices    int    // slices at the reference rate that this visit may still add to the first one
	seed      uint64 // of the arrivals of the last step

	// The system runs, or is frozen if thaw is not nil, or does not exist.
	system  *local.System
	stepper *Stepper
	thaw    func() error
	down    func(context.Context) error // stops a target that is not ours; nil = nothing to stop
}

// open prepares the measurement of a cell, with a directory of this name, and starts nothing. An error is stored in the
// result.
func (b *Bench) open(s Spec, name string) *cellRun {
	r := b.newRun(s, b.describe(s))
	dir, err := b.Run.Cell(name)
	if err == nil {
		r.logs = dir.LogsDir()
		r.files, err = openFiles(dir, r.cell)
	}
	r.failed = err
	return r
}

// newRun returns the measurement of a cell without any step.
func (b *Bench) newRun(s Spec, c results.Cell) *cellRun {
	config := b.Plan.Search
	for _, term := range b.SLO.Terms() {
		config.Allowed = append(config.Allowed, term.Allowed)
	}
	return &cellRun{
		Bench: b, Spec: s, cell: c,
		estimator: capacity.New(config), quiet: quiet{estimator: capacity.New(config)},
	}
}

func (r *cellRun) name() string {
	return strings.TrimSpace(r.cell.Stage + " " + r.cell.Workload + " " + r.Variant)
}

// close stops the system, if a visit was interrupted or failed, and closes the files.
func (r *cellRun) close(ctx context.Context) error { return errors.Join(r.stop(ctx), r.files.close()) }

// describe returns the cell with all fields that are known before the measurement.
func (b *Bench) describe(s Spec) results.Cell {
	t, l := s.Topology, s.Load
	c := results.Cell{
		Stage: s.stage(), Workload: l.Workload.Name(), Variant: s.Variant, Driver: b.Driver.Name(), Knobs: t.Knobs,
		Topology: t.Digest(), Engines: map[string]string{}, Versions: map[string]string{}, Units: t.Units(),
		SLO: b.SLO.String(), Trace: l.Trace,
	}
	switch {
	case l.Times != nil:
		c.CapacityMethod = results.MethodReplay
	case s.Fixed != nil:
		c.CapacityMethod = results.MethodFixed
	}
	for role, engine := range ladder.Engines(t) {
		c.Engines[string(role)] = string(engine)
	}
	for _, h := range t.Hosts {
		c.Hosts = append(c.Hosts, results.CellHost{Host: h.Name, CPU: h.CPU})
	}
	return c
}

// files are the files that are written while a cell is measured.
type files struct {
	latency  io.WriteCloser
	log      *hdr.Log
	timeline *timeline
}

func openFiles(dir *rundir.CellDir, c results.Cell) (files, error) {
	var f files
	var err error
	if f.latency, err = dir.CreateLatency(); err != nil {
		return f, err
	}
	title := "stagebench " + c.Stage + " " + c.Workload + ", nanoseconds"
	if f.log, err = hdr.NewLog(f.latency, title, time.Now()); err != nil {
		return f, errors.Join(err, f.latency.Close())
	}
	rows, err := dir.CreateTimeline()
	if err != nil {
		return f, errors.Join(err, f.latency.Close())
	}
	f.timeline = &timeline{rows: rows}
	return f, nil
}

func (f files) close() error {
	if f.timeline == nil {
		return nil // they could not be opened
	}
	return errors.Join(f.latency.Close(), f.timeline.rows.Close())
}

// visit measures the cell once. The system is started or continued, and then frozen, or stopped after the last visit.
// After an error it still runs.
func (r *cellRun) visit(ctx context.Context, n int, last bool) error {
	started := r.system == nil
	// Before the system runs: after a start or a thaw it is busy for a moment.
	r.cell.Speeds = append(r.cell.Speeds, machine.Calibrate())
	if err := r.resume(ctx); err != nil {
		return err
	}
	r.visits, r.repeated = n, 0
	var err error
	switch {
	case r.Load.Times != nil:
		err = r.replay(ctx)
	case r.Fixed != nil:
		err = r.fixedRate(ctx)
	default:
		err = r.measure(ctx, started, last)
	}
	if err != nil {
		return err
	}
	if !last && r.system != nil && r.Plan.Freeze && r.searches(r.Spec) && machine.SpareMemory() {
		if r.thaw, err = r.system.Freeze(ctx); err == nil {
			return nil
		}
		r.cell.Warnf("the system was restarted between two visits: %v", err)
	}
	if r.system == nil {
		return r.stop(context.WithoutCancel(ctx))
	}
	if err := r.checkWrites(ctx); err != nil {
		return err
	}
	return r.stop(context.WithoutCancel(ctx))
}

// resume continues a frozen system, or starts a new one.
func (r *cellRun) resume(ctx context.Context) error {
	if r.thaw != nil {
		thaw := r.thaw
		r.thaw = nil
		return thaw()
	}
	if r.Attached != nil {
		if err := r.attach(ctx); err != nil {
			return err
		}
		return r.logIn(ctx)
	}
	var err error
	if r.system, err = r.Up(ctx, r.Topology, r.logs); err != nil {
		return err
	}
	r.cell.BringUpNS = int64(r.system.BringUp())
	for _, n := range r.system.Status() {
		if ladder.Selectable(n.Role) {
			r.cell.Versions[string(n.Role)] = n.Version
		}
	}
	if r.stepper, err = r.newStepper(); err != nil {
		return err
	}
	return r.logIn(ctx)
}

// logIn logs all users of the workload in.
func (r *cellRun) logIn(ctx context.Context) error {
	if err := r.stepper.Clients.LogIn(ctx, r.Load.Workload, opTimeout); err != nil {
		return fmt.Errorf("before the measurement: %w", err)
	}
	return nil
}

// stop stops the system, if there is one.
func (r *cellRun) stop(ctx context.Context) error {
	var errs []error
	if r.thaw != nil {
		errs = append(errs, r.thaw())
	}
	if r.stepper != nil {
		r.stepper.Clients.Close()
	}
	if r.system != nil {
		r.cell.Failovers = append(r.cell.Failovers, Failovers(r.system.Failovers())...)
		errs = append(errs, r.system.Down(ctx))
	}
	if r.down != nil {
		errs = append(errs, r.down(ctx))
	}
	r.thaw, r.stepper, r.system, r.down = nil, nil, nil, nil
	return errors.Join(errs...)
}

func (r *cellRun) newStepper() (*Stepper, error) {
	config := driver.ClientConfig{
		Connections: r.Connections, ConnectionLife: r.ConnectionLife, DialTimeout: dialTimeout, Log: r.Log,
	}
	if err := Aim(&config, r.system.Endpoints(), r.system.Fallbacks()); err != nil {
		return nil, err
	}
	config.Sources = Sources(config.Endpoint, r.Seed)
	// An address hash keeps a user on a host only if the user keeps its address.
	config.SourcePerUser = r.Topology.Knobs["lb.policy"] == "ip_hash"
	clients, err := driver.NewClients(config)
	if err != nil {
		return nil, err
	}
	usage, err := r.system.Usage()
	if err != nil {
		return nil, err
	}
	system := r.system
	return &Stepper{
		Driver: r.Driver, Clients: clients, Workload: r.Load.Workload, SLO: r.SLO, Timeout: opTimeout,
		Drain: drainAtStop, Progress: r.Progress, History: history.New(), Target: system,
		ClientCores: ClientCores(usage), Figures: ladder.Figures(), Log: r.files.log, timeline: r.files.timeline,
		ceiling: newCeiling(r.Topology.Knobs),
		Nodes:   func(context.Context) ([]targets.NodeStatus, error) { return system.Status(), nil },
	}, nil
}

// phase is a part of a visit. It has its own arrivals and ops, which depend neither on the cell, nor on how many steps
// the phases before it had.
type phase uint64

const (
	warming  phase = iota
	search         // the peak and the steps around the capacity
	settling       // the warm-up before the reference slice
	steadily       // the reference slice, or the fixed rate
	phases
)

// A phase never has as many steps or ops as these distances.
const (
	phaseSeeds = 10_000  // between the seeds of two phases
	phaseOps   = 1 << 32 // between the first ops of two phases
)

func (r *cellRun) begin(p phase) {
	n := uint64(r.visits)*uint64(phases) + uint64(p)
	r.seed, r.stepper.nextJourney = r.Seed+n*phaseSeeds, n*phaseOps
}

// measure measures the peak, steps around the capacity, and a slice at the reference rate. The slice is last, because
// the steps before it have filled the caches. In the last visit there are more slices, if all of them together are not
// valid.
func (r *cellRun) measure(ctx context.Context, started, last bool) error {
	if started {
		r.begin(warming)
		if err := r.warmUp(ctx, r.Plan.ReferenceRPS, r.Plan.WarmupSlices); err != nil {
			return err
		}
	}
	r.begin(search)
	peak, err := r.peak(ctx)
	if err != nil {
		return err
	}
	r.estimator.Begin(peak)
	r.quiet.estimator.Begin(peak)
	for {
		rate, ok := r.estimator.Next()
		if !ok {
			break
		}
		s, err := r.trusted(ctx, "capacity", rate, cut+r.Plan.Step.At(rate))
		if err != nil {
			return err
		}
		// Users who wait for answers ask for less: what counts is the rate that was really offered.
		if j := s.result.Journeys; j != nil {
			rate *= j.DueShare()
		}
		r.estimator.Observe(rate, s.result.SLOMet, s.seconds)
		if s.result.Trusted() {
			r.quiet.estimator.Observe(rate, s.result.SLOMet, s.seconds)
		}
	}
	r.begin(settling)
	if err := r.warmUp(ctx, r.Plan.ReferenceRPS, 1); err != nil {
		return err
	}
	r.begin(steadily)
	r.reference.Wanted++
	r.slices = maxRepeated
	if last {
		r.slices = 2 * maxRepeated
	}
	for {
		err := r.referenceSlice(ctx, "reference", r.Plan.ReferenceRPS, r.Plan.Reference)
		if err != nil || !last || r.slices == 0 || len(r.reference.Parts) == 0 || r.reference.step(r.SLO).Valid {
			return err
		}
		r.slices--
	}
}

// steady is the maximum relative difference between the medians of two consecutive slices at the end of the warm-up.
const steady = 0.20

// warmUp sends at a rate, for at most this number of slices, until two consecutive slices have about the same median.
func (r *cellRun) warmUp(ctx context.Context, rate float64, slices int) error {
	var last int64
	for n := range slices {
		s, err := r.step(ctx, "warmup", rate, r.Plan.WarmupSlice)
		if err != nil || slices == 1 {
			return err
		}
		r.cell.WarmupCutNS = max(r.cell.WarmupCutNS, int64(r.Plan.WarmupSlice)*int64(n+1))
		if p50 := s.result.ResponseNS.P50; p50 != nil {
			if last > 0 && max(float64(*p50)/float64(last), float64(last)/float64(*p50)) <= 1+steady {
				return nil
			}
			last = *p50
		}
	}
	r.cell.Warnf("not steady after %v of warm-up: the median still moved by more than %.0f%%",
		time.Duration(slices)*r.Plan.WarmupSlice, steady*100)
	return nil
}

// referenceSlice measures a slice at the rate that gives the latency of the cell. If its figures are not valid, it is
// measured again, with the same arrivals but new ops: with the same ones, it would find warm caches. A slice of several
// that still cannot be trusted counts for nothing.
func (r *cellRun) referenceSlice(ctx context.Context, purpose string, rate float64, d time.Duration) error {
	seed := r.seed
	for {
		s, err := r.step(ctx, purpose, rate, d)
		if s.distributions.recorder == nil {
			return err
		}
		final := err != nil || s.result.Valid || purpose != "reference" || r.slices == 0
		if final && (s.result.Trusted() || purpose != "reference") {
			r.reference.add(s)
			return err
		}
		r.cell.Steps[len(r.cell.Steps)-1].Repeated = true
		if final {
			r.reference.Rejected = append(r.reference.Rejected, s.result)
			return err
		}
		r.slices--
		r.seed = seed
	}
}

// peak returns the rate of successes while more is offered than the system can do; 0 if nothing succeeds.
func (r *cellRun) peak(ctx context.Context) (float64, error) {
	offered := r.Plan.FirstPeak
	for _, known := range r.cell.Peaks {
		offered = max(offered, overload*known)
	}
	for {
		offered = min(offered, r.Plan.Search.Max)
		s, err := r.trusted(ctx, "peak", offered, cut+r.Plan.Peak)
		if err != nil {
			return 0, err
		}
		goodput := s.result.GoodputRPS
		if goodput*overload <= offered || offered >= r.Plan.Search.Max {
			if goodput == 0 {
				r.cell.Warnf("nothing succeeded while %.0f/s were offered: the peak of this visit is not counted", offered)
				return 0, nil
			}
			r.cell.Peaks = append(r.cell.Peaks, goodput)
			if s.result.Trusted() {
				r.quiet.peaks = append(r.quiet.peaks, goodput)
			}
			return goodput, nil
		}
		r.cell.Steps[len(r.cell.Steps)-1].Repeated = true // it may not have been an overload
		offered = 2 * overload * goodput
	}
}

const (
	overload = 1.5 // rate at the peak, as a multiple of the peak
	// maxRepeated is the maximum number of steps in a visit that are measured again because something other than the
	// target may have decided them, and that of further slices at the reference rate, of which the last visit has twice as
	// many.
	maxRepeated = 2
)

// trusted measures a step, and measures it again if its result is not trusted.
func (r *cellRun) trusted(ctx context.Context, purpose string, rate float64, d time.Duration) (sample, error) {
	for {
		s, err := r.step(ctx, purpose, rate, d)
		if err != nil || s.result.Trusted() || r.repeated >= maxRepeated {
			return s, err
		}
		r.repeated++
		r.cell.Steps[len(r.cell.Steps)-1].Repeated = true
	}
}

// step measures one step with new arrivals and adds it to the cell.
func (r *cellRun) step(ctx context.Context, purpose string, rate float64, d time.Duration) (sample, error) {
	r.seed++
	opsPerJourney, _ := workloads.ShapeOf(r.Load.Workload)
	schedule, _, err := r.Plan.Shape.Schedule(rate, opsPerJourney, d, r.seed)
	if err != nil {
		return sample{}, err
	}
	return r.send(ctx, purpose, rate, schedule, d)
}

// send measures one step and adds it to the cell.
func (r *cellRun) send(
	ctx context.Context, purpose string, rate float64, schedule pace.Schedule, d time.Duration,
) (sample, error) {
	steady := window{terms: r.SLO.Terms(), end: int64(d)}
	r.stepper.OnOutcome = steady.record
	step, err := r.stepper.Step(ctx, purpose, rate, schedule, d)
	if err != nil {
		return sample{}, err
	}
	if purpose == "peak" || purpose == "capacity" {
		step.GoodputRPS = steady.goodput()
	}
	r.cell.Steps = append(r.cell.Steps, step)
	return sample{step, steady.seconds, r.stepper.last}, ctx.Err()
}

// replay sends a trace once, at its own times. There is no warm-up, because the first requests of the trace are part
// of the measurement.
func (r *cellRun) replay(ctx context.Context) error {
	r.stepper.nextJourney = 0 // in each visit, the trace begins with its first request
	s, err := r.send(ctx, "replay", r.Load.Rate(), r.Load.Times, r.Load.Length)
	if s.distributions.recorder != nil {
		r.reference.add(s)
	}
	return err
}
