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

// Times and sizes that are the same in every cell.
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
	Life        time.Duration // of a connection, 0 = for ever
	Run         *rundir.Dir
	Progress    Progress
	// Fixed is what is measured instead of a capacity; nil = the capacity.
	Fixed *Fixed
	// Up brings a topology up; node logs go to the directory.
	Up func(ctx context.Context, t sut.Topology, logDir string) (*local.System, error)
}

// Measure measures one cell. What goes wrong is in the cell's Error: a run goes
// on with the next one. Only ctx ends it early.
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

// describe fills in what is known before anything runs.
func (b *Bench) describe(t sut.Topology, l load.Load) results.Cell {
	c := results.Cell{
		Stage: string(t.Stage), Workload: l.Workload.Name(), Driver: b.Driver.Name(), Knobs: t.Knobs,
		Topology: t.Digest(), Engines: map[string]string{}, Versions: map[string]string{}, Units: t.Units(),
		SLO: b.SLO.String(), CapacityMethod: "bracket", Repeats: []float64{}, Warnings: []string{}, Steps: []results.Step{}, Trace: l.Trace,
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

// files are the files of a cell that are written while it is measured.
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

// repeat is one measurement of a cell, on processes of its own.
type repeat struct {
	*Bench
	cell    *results.Cell
	stepper *Stepper
	seed    uint64 // of the last step's arrivals
}

// seedOf is where the seeds of the arrivals of a repeat begin, counted from 0. They are
// the same in all cells; with those of another repeat the interval shows what they
// make of the capacity, too.
func (b *Bench) seedOf(n int) uint64 { return b.Seed + uint64(n)*repeatSeeds }

// repeat brings the topology up, measures it once and takes it down.
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
	r := &repeat{Bench: b, cell: c, stepper: stepper, seed: b.seedOf(n)}
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
	return r.findWrites(ctx, system)
}

func (b *Bench) stepper(system *local.System, workload workloads.Workload, f files) (*Stepper, error) {
	endpoint, addresses, err := Endpoint(system.Endpoints())
	if err != nil {
		return nil, err
	}
	clients, err := driver.NewClients(driver.ClientConfig{
		Endpoint: endpoint, Addresses: addresses, Connections: b.Connections, Sources: Sources(endpoint, b.Seed),
		ConnectionLife: b.Life, DialTimeout: dialTimeout,
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
		Progress: b.Progress, History: history.New(), Target: system, ClientCPU: FreeFor(usage),
		Nodes:   func(context.Context) ([]targets.NodeStatus, error) { return system.Status(), nil },
		Figures: ladder.Figures(), Log: f.log, timeline: f.timeline,
	}, nil
}

const (
	// referenceSeed and warmupOps keep the warm-up, whose length varies, apart from
	// what is measured: in arrivals, and in the place in the workload.
	referenceSeed = 1_000
	warmupOps     = 1 << 40
	// repeatSeeds is more than the steps of a repeat: no two have the same arrivals.
	repeatSeeds = 1_000_000
	// maxSpoiled bounds how many steps of a cell are offered again because
	// something else than the target may have broken them.
	maxSpoiled = 3
)

// replay sends a workload that has times of its own, once, as it is. What the
// trace asked for first is part of it, so nothing warms the target up.
func (r *repeat) replay(ctx context.Context, l load.Load) error {
	step, err := r.stepper.Step(ctx, "replay", l.Rate(), l.Times, l.Length)
	if err != nil {
		return err
	}
	r.cell.Steps = append(r.cell.Steps, step)
	r.setReference(&step)
	return ctx.Err()
}

// step makes a step of the cell, with arrivals of its own.
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
	reference, err := r.step(ctx, "reference", r.Plan.ReferenceRPS, r.Plan.Reference)
	r.setReference(&reference)
	if err != nil {
		return err
	}
	search := capacity.New(r.Plan.Search)
	if reference.SLOMet {
		search.Learn(reference.OfferedRPS)
	}
	spoiled := 0
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
		if step.Spoiled() && spoiled < maxSpoiled {
			spoiled++
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

// setReference makes a step the one that gives the latency of the cell.
func (r *repeat) setReference(step *results.Step) {
	r.cell.Reference = step
	for i := range r.cell.Hosts {
		r.cell.Hosts[i].Isolated = i < len(step.Hosts) && step.Hosts[i].Isolated
	}
}

// steady is how much the median of two slices may differ once the warm-up is
// over.
const steady = 0.20

// warmUp runs at a rate until two slices in a row have about the
// same median, and says how much was cut.
func (r *repeat) warmUp(ctx context.Context, rate float64) error {
	first := r.seed
	r.stepper.next = warmupOps
	// However long it took: the rows of a table are compared under the same arrivals and the same ops.
	defer func() { r.seed, r.stepper.next = first+referenceSeed, 0 }()
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

// conclude draws the cell's own conclusions from its steps.
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
		passed := s.Purpose != "warmup" && s.SLOMet && s.OfferedRPS <= c.CapacityRPS*1.0001
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

// judgeSteps takes over the validity of the steps that the row's figures rest
// on: the reference of each repeat, the highest that passed, and the lowest that
// failed, which says "client" when it was the client that could not keep up.
func judgeSteps(c *results.Cell, best *results.Step) {
	doubted := map[*results.Step]bool{nil: true}
	doubt := func(s *results.Step, where string) {
		if doubted[s] {
			return
		}
		doubted[s] = true
		c.Valid = c.Valid && s.Stands()
		for _, w := range s.Warnings {
			c.Warnf("%s step at %.0f/s%s: %s", s.Purpose, s.OfferedRPS, where, w)
		}
	}
	references := c.ReferenceSteps()
	for i, s := range references {
		where := ""
		if len(references) > 1 {
			where = fmt.Sprintf(" in repeat %d", i+1)
		}
		doubt(s, where)
	}
	doubt(best, "")
	for i := range c.Steps {
		s := &c.Steps[i]
		if s.OfferedRPS != c.FailingRPS || s.SLOMet || s.Valid {
			continue
		}
		if limit := results.FindLimit(*s); limit.By == "client" {
			c.Limit = limit
		}
		doubt(s, "")
		break
	}
}
