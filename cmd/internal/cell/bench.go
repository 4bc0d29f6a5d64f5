package cell

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/capacity"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/results/history"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/local"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
	"github.com/stagebench/stagebench/workloads/pace"
)

// Durations that are the same in all cells.
const (
	opTimeout   = 5 * time.Second
	drainAtStop = 2 * time.Second
	dialTimeout = 2 * time.Second
)

// Bench measures cells. Its fields are the same for all cells of a run.
type Bench struct {
	Driver      driver.Driver
	Plan        Plan
	SLO         results.SLO
	Seed        uint64
	Connections int
	// ConnectionLife is the maximum age of a connection; 0 = no limit.
	ConnectionLife time.Duration
	Run            *rundir.Dir
	Progress       Progress
	// Fixed configures a measurement at one rate; nil = a capacity search.
	Fixed *Fixed
	// Up starts a topology. The nodes write their logs to logDir.
	Up func(ctx context.Context, t sut.Topology, logDir string) (*local.System, error)
}

// Measure measures one cell. An error is stored in the cell, so that the run can continue
// with the next cell. Cancelling ctx ends the measurement early.
func (b *Bench) Measure(ctx context.Context, topology sut.Topology, l load.Load) results.Cell {
	c := b.describe(topology, l)
	if err := b.repeats(ctx, &c, topology, l); err != nil {
		c.Error = err.Error()
	}
	conclude(&c)
	return c
}

func (b *Bench) repeats(ctx context.Context, c *results.Cell, topology sut.Topology, l load.Load) (err error) {
	dir, err := b.Run.Cell(c.Stage + "/" + c.Workload)
	if err != nil {
		return err
	}
	files, err := openFiles(dir, *c)
	if err != nil {
		return err
	}
	defer func() { err = cmp.Or(err, files.close()) }()
	for n := range b.Plan.Repeats {
		if err := b.repeat(ctx, n, c, topology, l, dir.LogsDir(), files); err != nil {
			return err
		}
	}
	return nil
}

// describe returns the cell with all fields that are known before the measurement.
func (b *Bench) describe(t sut.Topology, l load.Load) results.Cell {
	c := results.Cell{
		Stage: string(t.Stage), Workload: l.Workload.Name(), Driver: b.Driver.Name(), Knobs: t.Knobs,
		Topology: t.Digest(), Engines: map[string]string{}, Versions: map[string]string{}, Units: t.Units(),
		SLO: b.SLO.String(), CapacityMethod: "bracket", Repeats: []float64{}, Warnings: []string{},
		Steps: []results.Step{}, Trace: l.Trace,
	}
	switch {
	case l.Times != nil:
		c.CapacityMethod = results.MethodReplay
	case b.Fixed != nil:
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

func (f files) close() error { return errors.Join(f.latency.Close(), f.timeline.rows.Close()) }

// repeat is one measurement of a cell, with newly started processes.
type repeat struct {
	*Bench
	cell    *results.Cell
	stepper *Stepper
	seed    uint64 // seed of the last step's arrivals
}

// seedBefore returns the seed before that of the first step of repeat n, counted from 0. It
// is the same in all cells. Repeats use different seeds, so that the spread of the
// capacity includes the effect of the arrivals.
func (b *Bench) seedBefore(n int) uint64 { return b.Seed + uint64(n)*repeatSeeds }

// repeat starts the topology, measures it once and stops it.
func (b *Bench) repeat(
	ctx context.Context, n int, c *results.Cell, topology sut.Topology, l load.Load, logs string, f files,
) (err error) {
	system, err := b.Up(ctx, topology, logs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, system.Down(context.WithoutCancel(ctx))) }()
	c.BringUpNS = int64(system.BringUp())
	for _, n := range system.Status() {
		if _, chosen := c.Engines[string(n.Role)]; chosen {
			c.Versions[string(n.Role)] = n.Version
		}
	}
	stepper, err := b.stepper(system, l.Workload, f)
	if err != nil {
		return err
	}
	defer stepper.Clients.Close()
	if err := stepper.Clients.LogIn(ctx, l.Workload, opTimeout); err != nil {
		return fmt.Errorf("before the measurement: %w", err)
	}
	r := &repeat{Bench: b, cell: c, stepper: stepper, seed: b.seedBefore(n)}
	switch {
	case l.Times != nil:
		err = r.replay(ctx, l)
	case b.Fixed != nil:
		err = r.fixedRate(ctx, system)
	default:
		err = r.search(ctx)
	}
	if err != nil {
		return err
	}
	return r.checkWrites(ctx, system)
}

func (b *Bench) stepper(system *local.System, workload workloads.Workload, f files) (*Stepper, error) {
	endpoint, addresses, err := Endpoint(system.Endpoints())
	if err != nil {
		return nil, err
	}
	clients, err := driver.NewClients(driver.ClientConfig{
		Endpoint: endpoint, Addresses: addresses, Connections: b.Connections, Sources: Sources(endpoint, b.Seed),
		ConnectionLife: b.ConnectionLife, DialTimeout: dialTimeout,
	})
	if err != nil {
		return nil, err
	}
	usage, err := system.Usage()
	if err != nil {
		return nil, err
	}
	return &Stepper{
		Driver: b.Driver, Clients: clients, Workload: workload, SLO: b.SLO, Timeout: opTimeout, Drain: drainAtStop,
		Progress: b.Progress, History: history.New(), Target: system, ClientCores: ClientCores(usage),
		Nodes:   func(context.Context) ([]targets.NodeStatus, error) { return system.Status(), nil },
		Figures: ladder.Figures(), Log: f.log, timeline: f.timeline,
	}, nil
}

const (
	// The warm-up varies in length. These values separate its arrivals and its ops from
	// those of the measured steps.
	referenceSeed = 1_000   // added to the seed for the steps after the warm-up
	warmupOps     = 1 << 40 // index of the first op of the warm-up
	// repeatSeeds is the distance between the seeds of two repeats. It exceeds the number
	// of steps in a repeat, so no two steps have the same arrivals.
	repeatSeeds = 1_000_000
	// maxDisturbed is the maximum number of steps in a repeat that are measured again because
	// something other than the target may have broken the objective.
	maxDisturbed = 3
)

// replay sends a trace once, at its own times. There is no warm-up, because the first
// requests of the trace are part of the measurement.
func (r *repeat) replay(ctx context.Context, l load.Load) error {
	step, err := r.stepper.Step(ctx, "replay", l.Rate(), l.Times, l.Length)
	if err != nil {
		return err
	}
	r.cell.Steps = append(r.cell.Steps, step)
	r.setReference(&step)
	return ctx.Err()
}

// step measures one step with new arrivals and adds it to the cell.
func (r *repeat) step(ctx context.Context, purpose string, rate float64, d time.Duration) (results.Step, error) {
	r.seed++
	schedule, err := pace.Poisson(rate, r.seed)
	if err != nil {
		return results.Step{}, err
	}
	step, err := r.stepper.Step(ctx, purpose, rate, schedule, d)
	if err != nil {
		return step, err
	}
	r.cell.Steps = append(r.cell.Steps, step)
	return step, ctx.Err()
}

// search measures the reference rate and searches for the capacity.
func (r *repeat) search(ctx context.Context) error {
	if err := r.warmUp(ctx, r.Plan.ReferenceRPS); err != nil {
		return err
	}
	reference, err := r.reference(ctx)
	if err != nil {
		return err
	}
	search := capacity.New(r.Plan.Search)
	if reference.SLOMet {
		search.Learn(reference.OfferedRPS)
	}
	disturbed, replaced := 0, -1 // number of repeated steps; index of the one that the next step replaces
	for {
		rate, purpose, ok := search.Next()
		if !ok {
			break
		}
		length := r.Plan.Step
		if purpose == capacity.Confirm {
			length = r.Plan.Confirm
		}
		step, err := r.step(ctx, string(purpose), rate, length.At(rate))
		if err != nil {
			return err
		}
		if replaced >= 0 {
			r.cell.Steps[replaced].Repeated = true
		}
		if replaced = -1; step.Disturbed() && disturbed < maxDisturbed {
			disturbed++
			replaced = len(r.cell.Steps) - 1
			continue
		}
		search.Observe(rate, step.SLOMet)
	}
	c := r.cell
	low, high, confirmed := search.Bracket()
	if low > 0 && !confirmed {
		c.Warnf("capacity %.0f/s passed a short step but no confirmation", low)
	}
	c.CapacityLow, c.CapacityHigh = low, high
	if high > 0 && (c.FailingRPS == 0 || high < c.FailingRPS) {
		c.FailingRPS = high
	}
	c.Repeats, c.RepeatsHigh = append(c.Repeats, low), append(c.RepeatsHigh, high)
	return nil
}

// reference measures the reference step. If its figures are not valid, it is measured once more, with the same
// arrivals but new ops: with the same ones, it would find warm caches.
func (r *repeat) reference(ctx context.Context) (results.Step, error) {
	seed := r.seed
	step, err := r.step(ctx, "reference", r.Plan.ReferenceRPS, r.Plan.Reference)
	if err == nil && !step.Valid {
		first := len(r.cell.Steps) - 1
		r.seed = seed
		step, err = r.step(ctx, "reference", r.Plan.ReferenceRPS, r.Plan.Reference)
		r.cell.Steps[first].Repeated = len(r.cell.Steps) > first+1
	}
	r.setReference(&step)
	return step, err
}

// setReference stores the step whose latency is the latency of the cell.
func (r *repeat) setReference(step *results.Step) {
	r.cell.Reference = step
	for i := range r.cell.Hosts {
		r.cell.Hosts[i].Isolated = i < len(step.Hosts) && step.Hosts[i].Isolated
	}
}

// steady is the maximum relative difference between the medians of two consecutive slices
// at the end of the warm-up.
const steady = 0.20

// warmUp sends at a rate until two consecutive slices have about the same median. It
// stores the duration of the warm-up in the cell.
func (r *repeat) warmUp(ctx context.Context, rate float64) error {
	first := r.seed
	r.stepper.nextOp = warmupOps
	// All cells of a table get the same arrivals and the same ops, no matter how long their warm-up was.
	defer func() { r.seed, r.stepper.nextOp = first+referenceSeed, 0 }()
	var last int64
	r.cell.WarmupCutNS = 0 // of the last repeat
	for range r.Plan.WarmupSlices {
		step, err := r.step(ctx, "warmup", rate, r.Plan.WarmupSlice)
		if err != nil {
			return err
		}
		r.cell.WarmupCutNS += int64(r.Plan.WarmupSlice)
		if p50 := step.ResponseNS.P50; p50 != nil {
			if last > 0 && max(float64(*p50)/float64(last), float64(last)/float64(*p50)) <= 1+steady {
				return nil
			}
			last = *p50
		}
	}
	r.cell.Warnf("not steady after %v of warm-up: the median still moved by more than %.0f%%",
		time.Duration(r.cell.WarmupCutNS), steady*100)
	return nil
}

// conclude computes capacity, limit and validity of a cell from its steps.
func conclude(c *results.Cell) {
	if n := len(c.Repeats); n > 1 {
		sorted := slices.Sorted(slices.Values(c.Repeats))
		c.CapacityMethod = fmt.Sprintf("median of %d repeats with restarted processes, lowest to highest", n)
		c.CapacityLow, c.CapacityRPS, c.CapacityHigh = sorted[0], sorted[n/2], sorted[n-1]
	} else {
		c.CapacityRPS = c.CapacityLow
	}
	c.Valid = c.Error == ""
	var best *results.Step
	for i := range c.Steps {
		s := &c.Steps[i]
		passed := s.Purpose != "warmup" && s.SLOMet && !s.Repeated && s.OfferedRPS <= c.CapacityRPS*1.0001
		if passed && (best == nil || s.OfferedRPS >= best.OfferedRPS) {
			best = s
		}
	}
	switch {
	case !c.Searched():
		c.Limit = results.Limit{By: "unknown", Figure: "no limit was looked for"}
	case best == nil:
		c.Limit = results.Limit{By: "unknown", Figure: "no step met the objective"}
	default:
		c.Limit = results.FindLimit(*best)
	}
	judgeSteps(c, best)
	c.LimitedBy = c.Limit.By
}

// judgeSteps makes the cell invalid if a figure of it depends on a step that cannot be trusted, and copies the
// warnings of these steps. Its latency depends on the reference step of each repeat, and its capacity on the verdicts
// of the best step and of the lowest failing step of each repeat. If the client caused such a failure, the limit of
// the cell becomes "client". Best is the passed step at the highest rate; nil = none.
func judgeSteps(c *results.Cell, best *results.Step) {
	judged := map[*results.Step]bool{}
	judge := func(s *results.Step, trusted bool, where string) {
		c.Valid = c.Valid && trusted
		if judged[s] {
			return
		}
		judged[s] = true
		for _, w := range s.Warnings {
			if trusted && slices.Contains(s.Invalid, w) {
				continue // it cannot have changed the figure of the cell
			}
			c.Warnf("%s step at %.0f/s%s: %s", s.Purpose, s.OfferedRPS, where, w)
		}
	}
	references := c.ReferenceSteps()
	for i, s := range references {
		where := ""
		if len(references) > 1 {
			where = fmt.Sprintf(" in repeat %d", i+1)
		}
		judge(s, s.Valid, where)
	}
	if best != nil {
		judge(best, best.Trusted(), "")
	}
	for i := range c.Steps {
		s := &c.Steps[i]
		decides := s.OfferedRPS == c.FailingRPS || slices.Contains(c.RepeatsHigh, s.OfferedRPS)
		if !decides || s.SLOMet || s.Valid || s.Repeated || s.Purpose == "warmup" {
			continue
		}
		if limit := results.FindLimit(*s); limit.By == "client" {
			c.Limit = limit
		}
		judge(s, s.Trusted(), "")
	}
}
