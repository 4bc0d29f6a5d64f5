package cell

import (
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
	dir, err := b.Run.Cell(c.Stage + "/" + c.Workload)
	if err != nil {
		c.Error = err.Error()
		return c
	}
	files, err := openFiles(dir, c)
	if err != nil {
		c.Error = err.Error()
		return c
	}
	for n := range b.Plan.Repeats {
		if err := b.forRepeat(n).repeat(ctx, &c, topology, l, dir, files); err != nil {
			c.Error = err.Error()
			break
		}
	}
	if err := files.close(); err != nil && c.Error == "" {
		c.Error = err.Error()
	}
	conclude(&c, b.SLO)
	return c
}

// describe fills in what is known before anything runs.
func (b *Bench) describe(t sut.Topology, l load.Load) results.Cell {
	c := results.Cell{
		Stage: string(t.Stage), Workload: l.Workload.Name(), Driver: b.Driver.Name(), Knobs: t.Knobs, Topology: t.Digest(),
		Engines: map[string]string{}, Versions: map[string]string{}, Units: t.Units(), SLO: b.SLO.String(),
		CapacityMethod: "bracket", Repeats: []float64{}, Warnings: []string{}, Steps: []results.Step{}, Trace: l.Trace,
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
	if f.log, err = hdr.NewLog(f.latency, "stagebench "+c.Stage+" "+c.Workload+", nanoseconds", time.Now()); err != nil {
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

// forRepeat is the bench with the arrivals of one repeat, counted from 0. They are
// the same in all cells; with those of another repeat the interval shows what they
// make of the capacity, too.
func (b *Bench) forRepeat(n int) *Bench {
	again := *b
	again.Seed += uint64(n) * repeatSeeds
	return &again
}

// repeat brings the topology up, measures it once and takes it down.
func (b *Bench) repeat(ctx context.Context, c *results.Cell, topology sut.Topology, l load.Load, dir *rundir.CellDir, f files) (err error) {
	system, err := b.Up(ctx, topology, dir.LogsDir())
	if err != nil {
		return err
	}
	defer func() {
		err = errors.Join(err, system.Down(context.WithoutCancel(ctx)))
	}()
	c.BringUpNS = int64(system.BringUp())
	for _, n := range system.Status() {
		if _, chosen := c.Engines[string(n.Role)]; chosen {
			c.Versions[string(n.Role)] = n.Version
		}
	}
	stepper, err := b.stepper(ctx, system, l.Workload, f)
	if err != nil {
		return err
	}
	defer stepper.Clients.Close()
	if err := stepper.Clients.LogIn(ctx, l.Workload, opTimeout); err != nil {
		return fmt.Errorf("before the measurement: %w", err)
	}
	switch {
	case l.Times != nil:
		err = replay(ctx, c, stepper, l)
	case b.Fixed != nil:
		err = b.hold(ctx, c, stepper, system)
	default:
		err = b.measure(ctx, c, stepper)
	}
	if err != nil {
		return err
	}
	return b.findWrites(ctx, c, stepper, system)
}

// replay sends a workload that has times of its own, once, as it is. What the
// trace asked for first is part of it, so nothing warms the target up.
func replay(ctx context.Context, c *results.Cell, s *Stepper, l load.Load) error {
	step, err := s.Step(ctx, "replay", l.Rate(), l.Times, l.Length)
	if err != nil {
		return err
	}
	c.Steps = append(c.Steps, step)
	settle(c, &step)
	return ctx.Err()
}

func (b *Bench) stepper(ctx context.Context, system *local.System, workload workloads.Workload, f files) (*Stepper, error) {
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
		Progress: b.Progress, History: history.New(), Target: system, ClientCPU: FreeFor(usage), Log: f.log, timeline: f.timeline,
		Nodes: func(context.Context) ([]targets.NodeStatus, error) { return system.Status(), nil },
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

// steps returns what makes a step of a cell, each with arrivals of its own. What
// it points to is the number of the arrivals that were used last.
func (b *Bench) steps(ctx context.Context, c *results.Cell, s *Stepper) (func(string, float64, time.Duration) (results.Step, error), *uint64) {
	offered := new(uint64)
	return func(purpose string, rate float64, d time.Duration) (results.Step, error) {
		*offered++
		schedule, err := pace.Poisson(rate, b.Seed+*offered)
		if err != nil {
			return results.Step{}, err
		}
		step, err := s.Step(ctx, purpose, rate, schedule, d)
		if err != nil {
			return step, err
		}
		c.Steps = append(c.Steps, step)
		return step, ctx.Err()
	}, offered
}

// measure warms up, measures the reference rate and searches for the capacity.
func (b *Bench) measure(ctx context.Context, c *results.Cell, s *Stepper) error {
	steps, offered := b.steps(ctx, c, s)
	s.next = warmupOps
	if err := b.warmUp(c, b.Plan.ReferenceRPS, steps); err != nil {
		return err
	}
	// However long the warm-up took: the rows of a table are compared under the
	// same arrivals and the same ops.
	*offered, s.next = referenceSeed, 0
	reference, err := steps("reference", b.Plan.ReferenceRPS, b.Plan.Reference)
	settle(c, &reference)
	if err != nil {
		return err
	}
	search := capacity.New(b.Plan.Search)
	if reference.SLOMet {
		search.Learn(reference.OfferedRPS)
	}
	spoiled := 0
	for {
		rate, purpose, ok := search.Next()
		if !ok {
			break
		}
		length := b.Plan.Step
		if purpose == capacity.Confirm {
			length = b.Plan.Confirm
		}
		step, err := steps(string(purpose), rate, length.At(rate))
		if err != nil {
			return err
		}
		// What broke a step that is not valid may have been the client.
		if !step.SLOMet && !step.Valid && spoiled < maxSpoiled {
			spoiled++
			continue
		}
		search.Observe(rate, step.SLOMet)
	}
	low, high, confirmed := search.Bracket()
	if low > 0 && !confirmed {
		c.Warnings = append(c.Warnings, fmt.Sprintf("capacity %.0f/s passed a short step but no confirmation", low))
	}
	c.CapacityLow, c.CapacityHigh = low, high
	if high > 0 && (c.FailingRPS == 0 || high < c.FailingRPS) {
		c.FailingRPS = high
	}
	c.Repeats, c.RepeatsHigh = append(c.Repeats, low), append(c.RepeatsHigh, high)
	return nil
}

// settle makes a step the one whose latency the cell is known by.
func settle(c *results.Cell, step *results.Step) {
	c.Reference = step
	for i := range c.Hosts {
		c.Hosts[i].Isolated = i < len(step.Hosts) && step.Hosts[i].Isolated
	}
}

// steady is how much the median of two slices may differ once the warm-up is
// over.
const steady = 0.20

// warmUp runs at a rate until two slices in a row have about the
// same median, and says how much was cut.
func (b *Bench) warmUp(c *results.Cell, rate float64, steps func(string, float64, time.Duration) (results.Step, error)) error {
	var last int64
	c.WarmupCutNS = 0 // of the last repeat
	for range b.Plan.WarmupSlices {
		step, err := steps("warmup", rate, b.Plan.WarmupSlice)
		if err != nil {
			return err
		}
		c.WarmupCutNS += int64(b.Plan.WarmupSlice)
		if p50 := step.ResponseNS.P50; p50 != nil {
			if last > 0 && max(float64(*p50)/float64(last), float64(last)/float64(*p50)) <= 1+steady {
				return nil
			}
			last = *p50
		}
	}
	c.Warnings = append(c.Warnings, fmt.Sprintf("not steady after %v of warm-up: the median still moved by more than %.0f%%",
		time.Duration(c.WarmupCutNS), steady*100))
	return nil
}

// conclude draws the cell's own conclusions from its steps.
func conclude(c *results.Cell, slo results.SLO) {
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
		if s.Purpose == "warmup" {
			continue
		}
		if s.SLOMet && (best == nil || s.OfferedRPS >= best.OfferedRPS) && s.OfferedRPS <= c.CapacityRPS*1.0001 {
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
	judgeSteps(c, best, slo)
	c.LimitedBy = c.Limit.By
}

// judgeSteps takes over the validity of the steps that the row's figures rest
// on: the reference of each repeat, the highest that passed, and the lowest that
// failed, which says "client" when it was the client that could not keep up.
func judgeSteps(c *results.Cell, best *results.Step, slo results.SLO) {
	doubted := map[*results.Step]bool{nil: true}
	doubt := func(s *results.Step, where string) {
		if doubted[s] {
			return
		}
		doubted[s] = true
		c.Valid = c.Valid && (s.Valid || results.HarmlessLateness(*s, slo))
		for _, w := range s.Warnings {
			c.Warnings = append(c.Warnings, fmt.Sprintf("%s step at %.0f/s%s: %s", s.Purpose, s.OfferedRPS, where, w))
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
		if results.ClientSaturated(*s) {
			c.Limit = results.Limit{By: "client", Figure: fmt.Sprintf("%.0f%% of its CPU", s.Client.CPUShare*100), CPUShare: s.Client.CPUShare}
		}
		doubt(s, "")
		break
	}
}
