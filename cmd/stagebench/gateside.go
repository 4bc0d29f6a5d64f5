package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"math"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/compare"
	"github.com/stagebench/stagebench/results/gate"
	"github.com/stagebench/stagebench/results/live"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets/local"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
	"github.com/stagebench/stagebench/workloads/pace"
)

// pair measures base and head in turn.
type pair struct {
	options    gateOptions
	progress   *live.Progress
	dir        *rundir.Dir
	run        results.Run
	base, head *cell.Slices
	// side prepares a further system of our own; nil for services that are there already.
	side    func(contender) (*cell.Slices, error)
	cleanUp []func(context.Context) error // in reverse order
}

// close ends everything that the pair has started.
func (p *pair) close(ctx context.Context) error {
	var errs []error
	for _, end := range slices.Backward(p.cleanUp) {
		errs = append(errs, end(context.WithoutCancel(ctx)))
	}
	return errors.Join(errs...)
}

// slicePlan is the plan of all slices.
func (o gateOptions) slicePlan() cell.Plan {
	plan := cell.Default()
	shape, err := pace.Parse("poisson")
	must(err)
	plan.Mode, plan.Visits, plan.Repeats, plan.Freeze, plan.Shape = "gate", 1, 1, false, shape
	plan.Reference, plan.Peak = o.slice, max(o.burst, time.Second)
	plan.WarmupSlice, plan.WarmupSlices = o.warmup, 4
	return plan
}

// alwaysMet is the objective of slices: whether one counts depends on the client and the machine alone.
const alwaysMet = "errors<100%"

// onPair prepares both sides, calls measure with them, and ends everything. The pair is nil if it could not be
// prepared.
func (o gateOptions) onPair(ctx context.Context, s streams, measure func(*pair) error) (p *pair, err error) {
	progress := live.New(s.err, s.terminal, o.verbose)
	defer progress.Done()
	if p, err = o.pair(ctx, s, progress); err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.close(ctx)) }()
	return p, measure(p)
}

// pair makes the run directory and both sides. It starts no system.
func (o gateOptions) pair(ctx context.Context, s streams, progress *live.Progress) (*pair, error) {
	p := &pair{options: o, progress: progress}
	prepare := p.systems
	if o.baseIs.kind == aURL {
		prepare = p.services
	}
	if err := prepare(ctx, s); err != nil {
		return nil, errors.Join(err, p.close(ctx))
	}
	return p, nil
}

// open makes the run directory.
func (p *pair) open(s streams, more map[string]any) (results.Manifest, error) {
	o, plan := p.options, p.options.slicePlan()
	config := map[string]any{
		"mode": plan.Mode, "plan": plan, "base": o.base, "head": o.head, "connections": o.connections,
	}
	maps.Copy(config, more)
	m, err := newManifest(s, o.seed, o.data, config)
	if err != nil {
		return m, err
	}
	p.run = results.Run{Schema: results.Schema, Run: m.Run}
	p.dir, err = createRun(o.out, m)
	return m, err
}

// systems prepares systems of our own: of two binaries, or with two settings of knobs.
func (p *pair) systems(ctx context.Context, s streams) error {
	o := p.options
	data, err := dataOf(o.data, o.seed)
	if err != nil {
		return err
	}
	loaded, err := interruptible(ctx, func() (load.Load, error) {
		return load.Maker{Data: data, Service: true}.Make(cmp.Or(o.workload, "read-heavy"))
	})
	if err != nil {
		return exit.Usage(err)
	}
	base, head, unit, err := o.topologies()
	if err := errors.Join(err, ownTimes(loaded)); err != nil {
		return err
	}
	if err := missingEngines([]sut.Topology{base, head}); err != nil {
		return err
	}
	s.sendsLoad()
	log := slog.New(slog.NewTextHandler(p.progress, &slog.HandlerOptions{Level: slog.LevelWarn}))
	up, err := newLauncher(data, log, func(string) {}) // a line for each start would hide the blocks
	if err != nil {
		return err
	}
	p.cleanUp = append(p.cleanUp, func(context.Context) error { return up.Budgets.Close() })
	m, err := p.open(s, map[string]any{
		"workload": loaded.Workload.Name(), "knobs": map[string]any{"base": base.Knobs, "head": head.Knobs},
	})
	if err != nil {
		return err
	}
	m.Budgets, m.UnitCPU, m.Reserve = up.Budgets.Describe(), unit, cell.Reserve(cell.Cores())
	m.Priority, _ = cell.DriverPriority(up.Budgets.Isolated())
	m.Digests["workload"] = workloads.Hash(loaded.Workload, 0, hashedOps)
	m.Digests["base"], m.Digests["head"] = base.Digest(), head.Digest()
	if err := errors.Join(p.dir.WriteManifest(m), awaitQuiet(ctx, maxUnquiet, &m, p.dir, p.progress)); err != nil {
		return err
	}
	p.run.Data, p.run.Warnings = data.String(), m.Warnings
	p.side = func(c contender) (*cell.Slices, error) { return p.system(s, up, c, loaded, unit) }
	if p.base, err = p.side(o.baseIs); err != nil {
		return err
	}
	p.head, err = p.side(o.headIs)
	return err
}

// system prepares the system of a contender.
func (p *pair) system(s streams, up launcher, c contender, l load.Load, unit float64) (*cell.Slices, error) {
	o := p.options
	t, err := o.topology(c, unit)
	if err != nil {
		return nil, err
	}
	if c.kind == aBinary && c.text != ownBinary {
		if up.Binary, err = filepath.Abs(c.text); err != nil {
			return nil, err
		}
		// Another version may make other files, which the next run of this one must not use.
		dir, err := local.PrivateDir()
		if err != nil {
			return nil, err
		}
		p.cleanUp = append(p.cleanUp, func(context.Context) error { return os.RemoveAll(dir) })
		up.TemplateDir = filepath.Join(dir, "templates")
	}
	bench := p.bench()
	bench.Connections, bench.Log, bench.Run, bench.Up = o.connections, s.log, p.dir, up.up
	slicing, err := bench.Slices(cell.Spec{Topology: t, Load: l, Variant: c.side})
	if err == nil {
		p.cleanUp = append(p.cleanUp, slicing.Close)
	}
	return slicing, err
}

// bench returns what measures the slices of a side.
func (p *pair) bench() *cell.Bench {
	slo, err := results.ParseSLO(alwaysMet)
	must(err)
	return &cell.Bench{
		Driver: vegeta.Driver{}, Plan: p.options.slicePlan(), SLO: slo, Seed: p.options.seed, Progress: p.progress,
	}
}

// ownTimes returns an error for a load with its own times.
func ownTimes(l load.Load) error {
	if l.Times == nil {
		return nil
	}
	return exit.Usagef("%s has its own times, and a gate measures one rate\nuse a workload without them",
		l.Workload.Name())
}

// hostsShare is the share of the machine's CPU that the hosts of the larger system have. A host that waits for its
// budget is noise, and so is a client that is late: with three quarters, four of five blocks did not count for that
// reason.
const hostsShare = 0.5

// topologies returns those of base and head, and the CPU unit of their hosts.
func (o gateOptions) topologies() (base, head sut.Topology, unit float64, err error) {
	both := func() error {
		var err error
		if base, err = o.topology(o.baseIs, unit); err == nil {
			head, err = o.topology(o.headIs, unit)
		}
		return err
	}
	unit = cell.Unit(cell.Cores())
	if err := both(); err != nil {
		return base, head, unit, err
	}
	if err := errors.Join(fits(base), fits(head)); err != nil {
		return base, head, unit, err
	}
	unit *= hostsShare * float64(cell.Cores()) / max(base.CPU(), head.CPU())
	return base, head, unit, both()
}

// topology returns that of a contender.
func (o gateOptions) topology(c contender, unit float64) (t sut.Topology, err error) {
	knobs, err := knobsOf(o.engines, slices.Concat(o.set, c.knobs))
	if err != nil {
		return t, err
	}
	return buildOf(cmp.Or(c.stage, o.stage), knobs, unit)
}

// services prepares services that are there already.
func (p *pair) services(ctx context.Context, s streams) error {
	o := p.options
	side := func(c contender) (aim, destination, error) {
		a := aim{
			target: c.text, workload: o.workload, method: http.MethodGet, timeout: o.timeout, connections: o.connections,
			seed: o.seed, data: o.data, allow: o.allow, identity: o.identity, slo: alwaysMet,
			replay: load.Replay{Speed: 1}, given: func(string) bool { return false },
		}
		d, err := a.destination(ctx)
		if err == nil {
			err = ownTimes(d.load)
		}
		d.stage = c.side
		return a, d, err
	}
	baseAim, base, err := side(o.baseIs)
	if err != nil {
		return err
	}
	headAim, head, err := side(o.headIs)
	if err != nil {
		return err
	}
	if _, err = p.open(s, map[string]any{"workload": base.load.Workload.Name()}); err != nil {
		return err
	}
	if p.base, err = p.attached(ctx, s, baseAim, base); err != nil {
		return err
	}
	p.head, err = p.attached(ctx, s, headAim, head)
	return err
}

// attached connects to a service.
func (p *pair) attached(ctx context.Context, s streams, a aim, d destination) (*cell.Slices, error) {
	clients, err := a.clients(ctx, s, d)
	if err != nil {
		return nil, err
	}
	p.cleanUp = append(p.cleanUp, func(context.Context) error { clients.Close(); return nil })
	if err := clients.LogIn(ctx, d.load.Workload, a.timeout); err != nil {
		return nil, fmt.Errorf("%s: log the users in: %w", d.stage, err)
	}
	stepper, err := a.stepper(ctx, s, d, clients, p.progress, 0)
	if err != nil {
		return nil, err
	}
	c := d.cell(vegeta.Driver{}.Name())
	closeFiles, err := stepper.Keep(p.dir, c)
	if err != nil {
		return nil, errors.Join(err, closeFiles())
	}
	p.cleanUp = append(p.cleanUp, func(context.Context) error { return closeFiles() })
	return p.bench().SlicesOf(stepper, d.load, c), nil
}

// rateShare is the rate of the slices as a share of the throughput of the base under overload. The hosts are then busy
// for about half of the time: under overload, requests share wake-ups and cost less.
const rateShare = 0.3

// overloadOfBase is the rate of a burst, as a multiple of the throughput of the base under overload.
const overloadOfBase = 1.5

// compare measures blocks until the gate decides, at most the given number. The result is nil if there was no block.
func (p *pair) compare(ctx context.Context, wanted []gate.Metric, maxBlocks int) (*results.Gate, error) {
	first, err := p.pilot(ctx, wanted)
	if err != nil {
		return nil, err
	}
	g, err := gate.New(first.metrics, p.options.seed)
	if err != nil {
		return nil, err
	}
	least := gate.Looks()[0].Blocks
	p.progress.Note(fmt.Sprintf("both at %.0f/s; a block takes about %v: the first decision comes after %d of them (%v), "+
		"the last one after %d (%v)", first.rate, first.each, least, time.Duration(least)*first.each,
		maxBlocks, time.Duration(maxBlocks)*first.each))
	var result results.Gate
	note := func(end bool) error {
		result = g.Result(end)
		result.Base, result.Head, result.OfferedRPS = p.options.base, p.options.head, first.rate
		if result.Head == ownBinary {
			result.Head = "this binary"
		}
		result.Warnings = append(result.Warnings, p.options.notCompared(wanted, first)...)
		if p.options.baseIs.kind == aURL {
			result.Warnings = append(result.Warnings, "base and head were not restarted between the blocks: "+
				"what happened at the start of one of them counts as a difference of the versions")
		}
		p.run.Gate, p.run.Cells = &result, []results.Cell{p.base.Cell(), p.head.Cell()}
		p.run.Complete = result.Verdict != results.GateUndecided
		return p.dir.WriteSummary(p.run)
	}
	for n, counted := 0, 0; counted < maxBlocks && g.Verdict() == results.GateUndecided; n++ {
		base, head, err := p.block(ctx, g, n, first)
		if err != nil {
			return &result, errors.Join(err, note(false))
		}
		dropped := g.Add(base, head, gate.HeadFirst(p.options.seed, n))
		if _, counted = g.NextLook(); dropped != "" {
			p.progress.Note(fmt.Sprintf("block %d does not count: %s", n+1, dropped))
		}
		if err := note(false); err != nil {
			return &result, err
		}
	}
	return &result, note(true)
}

// notCompared says which metrics are missing that the user may expect.
func (o gateOptions) notCompared(wanted []gate.Metric, first pilot) (notes []string) {
	percentiles := slices.DeleteFunc(without(wanted, first.metrics), func(name string) bool { return name[0] != 'p' })
	if len(percentiles) > 0 {
		notes = append(notes, fmt.Sprintf("%s: not compared, because a slice of %v at %.0f/s has too few requests; "+
			"a longer --slice has more", strings.Join(percentiles, ", "), o.slice, first.rate))
	}
	return notes
}

// pilot is what the first slice of the base says. It does not count.
type pilot struct {
	rate, burst float64 // of all slices
	metrics     []gate.Metric
	each        time.Duration // of a block
	slice       gate.Slice
}

// pilot measures the base once, to choose the rates and the metrics.
func (p *pair) pilot(ctx context.Context, wanted []gate.Metric) (first pilot, err error) {
	p.progress.Note("the base is measured once, to choose the rate")
	p.progress.Visit("base, first", 0, 1, 0)
	defer func() {
		if err != nil {
			err = fmt.Errorf("base: %w", err)
		}
	}()
	o := p.options
	first.rate = float64(o.rate)
	if first.rate == 0 || o.burst > 0 {
		peak, err := p.base.Peak(ctx)
		switch {
		case err != nil:
			return first, err
		case peak == 0:
			return first, errors.New("nothing succeeded under overload\ncheck it with: stagebench attack")
		}
		if first.rate == 0 {
			first.rate = max(1, math.Round(rateShare*peak))
		}
		if o.burst > 0 {
			first.burst = overloadOfBase * peak
		}
	}
	start := time.Now()
	if first.slice, err = p.base.Measure(ctx, 0, first.rate, first.burst); err != nil {
		return first, err
	}
	first.each = (2 * time.Since(start)).Round(time.Second)
	if first.slice.Steady.Ledger.OK == 0 {
		return first, fmt.Errorf("nothing succeeded at %.0f/s\ncheck it with: stagebench attack", first.rate)
	}
	first.metrics = gate.Measurable(wanted, first.slice)
	if missing := without(wanted, first.metrics); len(o.metrics) > 0 && len(missing) > 0 || len(first.metrics) == 0 {
		return first, exit.Usagef("slices of %v at %.0f/s cannot show %s: a percentile needs ten requests beyond it, "+
			"cpu a system of our own, burst an overload\nraise --slice, or leave it out of --metrics",
			o.slice, first.rate, strings.Join(missing, ", "))
	}
	return first, nil
}

// block measures one slice of each side.
func (p *pair) block(ctx context.Context, g *gate.Gate, n int, first pilot) (base, head gate.Slice, err error) {
	order := []string{"base", "head"}
	if gate.HeadFirst(p.options.seed, n) {
		order = []string{"head", "base"}
	}
	look, counted := g.NextLook()
	for i, side := range order {
		p.progress.Visit(fmt.Sprintf("block %d: %s", n+1, side), 2*counted+i, 2*look,
			time.Duration(look-counted)*first.each-time.Duration(i)*first.each/2)
		from, into := p.base, &base
		if side == "head" {
			from, into = p.head, &head
		}
		if *into, err = from.Measure(ctx, n+1, first.rate, first.burst); err != nil {
			return base, head, fmt.Errorf("%s: %w", side, err)
		}
	}
	return base, head, nil
}

// notComparable returns why two runs cannot be compared, "" if they can.
func notComparable(base, head compare.Run) string {
	c := compare.Compare([]compare.Run{base, head})
	for i, complete := range c.Complete {
		if !complete {
			return c.Runs[i] + ": " + notComplete
		}
	}
	for _, d := range c.Differences {
		if d.Breaks {
			return fmt.Sprintf("%s is %s and %s", d.What, shortened(d.Values[0]), shortened(d.Values[1]))
		}
	}
	return ""
}
