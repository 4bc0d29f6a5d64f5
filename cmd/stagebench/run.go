package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/live"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets/faults"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
	"github.com/stagebench/stagebench/workloads/pace"
)

// runOptions are the flags of `stagebench run`.
type runOptions struct {
	stages, workloads []string
	engines           string
	set               []string
	quick, full       bool
	out, data         string
	output            outputFlags
	seed              uint64
	connections       int
	slo               string
	strict, verbose   bool
	life              time.Duration
	reference         rate
	replay            load.Replay
	rate              rate
	schedule          pace.Shape
	duration          time.Duration
	faults            string
	given             func(flag string) bool
}

func runCommand(s streams) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Measure the ladder: every stage under every workload",
		Long: `Measures each stage on a fresh copy of the data: the latency at one common reference
rate, the highest rate that meets the objective (the capacity), and the throughput
under overload (the peak). Every figure comes from several visits, which are spread
over the run. Prints one row per stage and workload. The expected duration is printed
first.

With --rate, one fixed rate is measured and no capacity. With
--faults, hosts or nodes fail during this step as described in a file:

  - {at: 3s, do: kill, who: primary}           # at: time since the start of the step
  - {at: 6s, do: pause, who: web-2}            # who: a host, a node, a role such as web,
  - {at: 9s, do: resume, who: web-2}           # or for databases primary or replica
  - {at: 12s, do: restart, who: replica}       # kill, and report when it serves again
  - {at: 15s, do: kill, who: worker, for: 10s} # it stays dead for 10 s at least

Events and outages are printed below the table, and are in summary.json and
timeline.csv.`,
		Example: `  stagebench run
  stagebench run --quick
  stagebench run --stages lb --workloads read-heavy --set web.hosts=1 --set db.cpu=4
  stagebench run --engines native --format markdown --out runs/native
  stagebench run --stages lb --workloads write-heavy --rate 100 --duration 20s --faults faults.yaml`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.given = cmd.Flags().Changed
			return o.run(cmd.Context(), s)
		},
	}
	o.flags(cmd)
	replayFlags(cmd, &o.replay)
	o.output.runFlags(cmd)
	completeFlags(cmd)
	return cmd
}

func (o *runOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringSliceVar(&o.workloads, "workloads", []string{"read-heavy", "write-heavy"},
		"workloads: names (see: stagebench list workloads), a workload FILE.yaml, or trace:FILE (an access log)")
	f.BoolVar(&o.quick, "quick", false,
		"coarse results: one visit with short steps; three stages unless --stages is given")
	f.BoolVar(&o.full, "full", false, "five times as many visits, for narrow intervals")
	f.IntVarP(&o.connections, "connections", "c", cell.Connections(cell.Cores()), "number of connections of the driver")
	f.DurationVar(&o.life, "connection-life", 0, "renew connections older than this; 0 = never")
	f.StringVar(&o.slo, "slo", results.DefaultSLO().String(), "objective of the capacity search")
	f.VarP(&o.rate, "rate", "r",
		"measure this fixed rate in requests/s; 0 = capacity search, or with --faults the reference rate")
	shapeFlag(cmd, &o.schedule)
	f.DurationVarP(&o.duration, "duration", "d", 30*time.Second, "length of the step with --rate or --faults")
	f.StringVar(&o.faults, "faults", "", "YAML file of faults to inject while one fixed rate is measured")
	f.BoolVar(&o.strict, "strict", false, "exit with status 3 if a cell is invalid")
	o.commonFlags(cmd, "stages to measure, in this order; see: stagebench list stages",
		"embedded (nothing to install) or native (PostgreSQL, HAProxy)",
		"requests/s at which the latency of all stages is measured; 0 = default of the mode")
}

// commonFlags adds the flags that are also those of `stagebench scorecard`. The help of three of them depends on the
// command.
func (o *runOptions) commonFlags(cmd *cobra.Command, stages, engines, reference string) {
	f := cmd.Flags()
	f.StringSliceVar(&o.stages, "stages", []string{"all"}, stages)
	f.StringVar(&o.engines, "engines", "embedded", engines)
	f.StringArrayVar(&o.set, "set", nil, "set a knob, NAME=VALUE; may be repeated; see: stagebench list knobs")
	f.StringVarP(&o.out, "out", "o", "", "directory of the run (default runs/ID)")
	f.StringVar(&o.data, "data", "small", "size of the data set: "+strings.Join(sut.DataSizes(), ", "))
	f.Uint64Var(&o.seed, "seed", 1, "seed of data, arrivals and keys")
	f.Var(&o.reference, "reference", reference)
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print each step")
}

// job is a checked command line: what to measure, and how.
type job struct {
	topologies []sut.Topology
	loads      []load.Load
	plan       cell.Plan
	fixed      *cell.Fixed // nil = capacity search
	slo        results.SLO
	data       sut.Data
	extra      map[string]any // further entries of the manifest's configuration
}

func (o runOptions) run(ctx context.Context, s streams) (err error) {
	j, err := interruptible(ctx, o.job) // it reads files
	if err != nil {
		return err
	}
	dir, run, err := o.measure(ctx, s, j, j.cells())
	if dir == nil {
		return err
	}
	return errors.Join(err, o.conclude(s, dir, run))
}

// measure measures cells. If it returns a directory, the run has what was measured, also with an error.
func (o runOptions) measure(
	ctx context.Context, s streams, j job, cells []cell.Spec,
) (dir *rundir.Dir, run results.Run, err error) {
	if err := missingEngines(j.topologies); err != nil {
		return nil, run, err
	}
	s.sendsLoad()
	progress := live.New(s.err, s.terminal, o.verbose)
	defer progress.Done()
	bench := &cell.Bench{
		Driver: vegeta.Driver{}, Plan: j.plan, SLO: j.slo, Seed: o.seed,
		Connections: o.connections, ConnectionLife: o.life, Progress: progress, Log: s.log,
		Forecast: cell.NewForecast(j.plan, o.engines == "native"),
	}
	what := fmt.Sprintf("%d cells", len(cells))
	if len(cells) == len(j.topologies)*len(j.loads) {
		what += fmt.Sprintf(" (%d stages x %d workloads)", len(j.topologies), len(j.loads))
	}
	progress.Note(fmt.Sprintf("%s, about %v", what, bench.Expected(cells).Round(time.Second)))
	log := slog.New(slog.NewTextHandler(progress, &slog.HandlerOptions{Level: slog.LevelWarn}))
	up, err := newLauncher(j.data, log, progress.Note)
	if err != nil {
		return nil, run, err
	}
	defer func() { err = errors.Join(err, up.Budgets.Close()) }()
	dir, manifest, err := o.open(s, j, up)
	if err != nil {
		return nil, run, err
	}
	bench.Run, bench.Up = dir, up.up
	if err := awaitQuiet(ctx, maxUnquiet, &manifest, dir, progress); err != nil {
		return nil, run, err
	}
	run = results.Run{
		Schema: results.Schema, Run: manifest.Run, Data: j.data.String(), Warnings: manifest.Warnings,
	}
	err = measureCells(ctx, bench, cells, &run, &manifest, progress)
	return dir, run, err
}

// cells returns the cells to measure, in the order of the table.
func (j job) cells() (all []cell.Spec) {
	for _, l := range j.loads {
		for _, t := range j.topologies {
			all = append(all, cell.Spec{Topology: t, Load: l, Fixed: j.fixed})
		}
	}
	return all
}

// fits returns an error if the hosts of a topology leave the driver too little CPU.
func fits(t sut.Topology) error {
	const rounding = 1e-9 // of the sum
	if spare := float64(cell.Cores()) - t.CPU(); spare < cell.Reserve(cell.Cores())-rounding {
		return exit.Usagef("stage %s needs %.2f cores for its hosts and %.2f for the driver, but this machine has %d\n"+
			"use fewer or smaller hosts: --set web.hosts=N, --set db.cpu=UNITS",
			t.Stage, t.CPU(), cell.Reserve(cell.Cores()), cell.Cores())
	}
	return nil
}

// job checks the options. It starts nothing.
func (o runOptions) job() (job, error) {
	var j job
	var err error
	if j.slo, err = parseSLO(o.slo); err != nil {
		return j, err
	}
	if j.data, err = dataOf(o.data, o.seed); err != nil {
		return j, err
	}
	if o.connections < 1 || o.connections > 10_000 {
		return j, exit.Usagef("--connections %d\nwant 1 to 10000", o.connections)
	}
	if o.life < 0 {
		return j, exit.Usagef("--connection-life %v\nwant 0 (keep connections) or more", o.life)
	}
	if j.plan, err = planOf(o.quick, o.full); err != nil {
		return j, err
	}
	j.plan = j.plan.For(cell.Unit(cell.Cores()))
	if o.reference != 0 {
		if !(o.reference >= 1 && float64(o.reference) <= j.plan.Search.Max) {
			return j, exit.Usagef("--reference %v\nwant 1 to %v requests/s", o.reference, j.plan.Search.Max)
		}
		j.plan.ReferenceRPS = float64(o.reference)
	}
	if j.loads, err = o.loads(j.data); err != nil {
		return j, err
	}
	if o.given("slo") { // the default objective may name classes that the chosen workloads lack
		if err := checkClasses(j.slo, j.loads); err != nil {
			return j, err
		}
	}
	if j.topologies, err = o.topologies(); err != nil {
		return j, err
	}
	j.plan = j.plan.Across(len(j.topologies) * len(j.loads))
	j.plan.Shape = o.schedule
	if j.fixed, err = o.fixed(j); err != nil {
		return j, err
	}
	return j, o.checkSchedule(j)
}

// fixed returns the fixed rate to measure and the faults to inject, nil for a
// capacity search.
func (o runOptions) fixed(j job) (*cell.Fixed, error) {
	switch {
	case o.rate == 0 && o.faults == "" && o.given("duration"):
		return nil, exit.Usagef("--duration is for --rate and --faults: the mode sets the step lengths of a search\n" +
			"add --rate or --faults, or choose a mode with --quick or --full")
	case o.rate == 0 && o.faults == "":
		return nil, nil
	case o.rate != 0 && o.reference != 0:
		return nil, exit.Usagef("--reference is for a capacity search, and with --rate there is no search\n" +
			"use only one of them")
	}
	fixed := &cell.Fixed{RPS: float64(o.rate), Duration: o.duration}
	if o.rate == 0 {
		fixed.RPS = j.plan.ReferenceRPS
	}
	if !(fixed.RPS >= 1 && fixed.RPS <= j.plan.Search.Max) {
		return nil, exit.Usagef("--rate %v\nwant 1 to %v requests/s", o.rate, j.plan.Search.Max)
	}
	if o.duration < time.Second {
		return nil, exit.Usagef("--duration %v\nwant 1s or more", o.duration)
	}
	for _, l := range j.loads {
		if l.Times != nil {
			return nil, exit.Usagef("--rate and --faults cannot be used with %s, which has its own times\n"+
				"remove these flags, or choose another workload", l.Workload.Name())
		}
	}
	if o.faults == "" {
		return fixed, nil
	}
	text, err := os.ReadFile(o.faults)
	if err != nil {
		return nil, exit.Usagef("--faults: %w\n"+
			"name a file that you can read; for its content see: stagebench run --help", err)
	}
	if fixed.Faults, err = faults.Read(text, o.faults); err != nil {
		return nil, exit.Usage(err)
	}
	for _, t := range j.topologies {
		if err := fixed.Faults.Check(t, o.duration); err != nil {
			return nil, exit.Usagef("%s: %w", o.faults, err)
		}
	}
	return fixed, nil
}

func (o runOptions) loads(data sut.Data) ([]load.Load, error) {
	if len(o.workloads) == 0 {
		return nil, exit.Usagef("no workload given\nsee: stagebench list workloads")
	}
	if err := o.replay.Validate(); err != nil {
		return nil, exit.Usage(err)
	}
	if o.replay.Loop {
		return nil, exit.Usagef("--loop has no end, and run replays a trace once\n" +
			"to repeat a trace, use: stagebench attack --duration D --loop")
	}
	maker := load.Maker{Data: data, Replay: o.replay, Service: true}
	var loads []load.Load
	for _, name := range o.workloads {
		l, err := maker.Make(name)
		if err != nil {
			return nil, exit.Usage(err)
		}
		name := l.Workload.Name()
		if slices.ContainsFunc(loads, func(other load.Load) bool { return other.Workload.Name() == name }) {
			return nil, exit.Usagef("workload %q is given twice\nlist it once", name)
		}
		if rundir.CheckName(name) != nil {
			return nil, exit.Usagef("workload %q cannot be the name of a directory in the run: "+
				"want letters, digits and any of _ . , = + -\n"+
				"rename the file, or set another name in the workload file: name: shop", name)
		}
		loads = append(loads, l)
	}
	return loads, checkReplay(o.replay, loads)
}

func (o runOptions) topologies() ([]sut.Topology, error) {
	knobs, err := knobsOf(o.engines, o.set)
	if err != nil {
		return nil, err
	}
	stages := o.stages
	if len(stages) == 1 && stages[0] == "all" {
		stages = o.allStages()
	}
	if len(stages) == 0 {
		return nil, exit.Usagef("no stage given\nsee: stagebench list stages")
	}
	var all []sut.Topology
	for i, stage := range stages {
		if slices.Contains(stages[:i], stage) {
			return nil, exit.Usagef("stage %q is given twice\nlist it once", stage)
		}
		t, err := build(stage, knobs)
		if err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// allStages returns the stages of a run without --stages. With --quick they are three: one host, several web hosts, and
// several databases.
func (o runOptions) allStages() []string {
	if o.quick && !o.given("stages") {
		return []string{string(sut.Single), string(sut.LB), string(sut.Replicas)}
	}
	return stageNames()
}

// open makes the run directory and writes the manifest.
func (o runOptions) open(s streams, j job, up launcher) (*rundir.Dir, results.Manifest, error) {
	m, err := newManifest(s, o.seed, o.data, map[string]any{
		"mode": j.plan.Mode, "plan": j.plan, "slo": j.slo.String(), "connections": o.connections,
		"connection_life": o.life.String(), "knobs": knobsOfAll(j.topologies), "workloads": o.workloads,
		"speed": o.replay.Speed, "max_gap": o.replay.MaxGap.String(),
	})
	if err != nil {
		return nil, m, err
	}
	m.Budgets, m.UnitCPU, m.Reserve = up.Budgets.Describe(), cell.Unit(cell.Cores()), cell.Reserve(cell.Cores())
	m.Priority, _ = cell.DriverPriority(up.Budgets.Isolated())
	maps.Copy(m.Config, j.extra)
	if j.fixed != nil {
		m.Config["rate_rps"], m.Config["duration"] = j.fixed.RPS, j.fixed.Duration.String()
		m.Config["faults"] = j.fixed.Faults.Texts()
	}
	for _, l := range j.loads {
		m.Digests["workload."+l.Workload.Name()] = workloads.Hash(l.Workload, 0, hashedOps)
	}
	for _, t := range j.topologies {
		m.Digests[string(t.Stage)] = t.Digest()
		for role, engine := range ladder.Engines(t) {
			m.Engines[string(role)] = string(engine)
		}
	}
	dir, err := createRun(o.out, m)
	return dir, m, err
}

// measureCells measures all cells. It writes the summary after each visit, so that a killed run keeps its figures.
func measureCells(
	ctx context.Context, bench *cell.Bench, cells []cell.Spec, run *results.Run, m *results.Manifest,
	progress *live.Progress,
) error {
	bench.Finished = func(c results.Cell) { progress.Note(inOneLine(c)) }
	failed := map[string]bool{}
	err := bench.Measure(ctx, cells, func(measured []results.Cell) error {
		run.Cells = measured
		for _, c := range measured {
			if name := c.Stage + " " + c.Workload; c.Error != "" && !failed[name] {
				failed[name] = true
				progress.Note(name + ": " + c.Error)
			}
		}
		return errors.Join(bench.Run.WriteSummary(*run), keepVersions(bench.Run, m, measured))
	})
	if err != nil {
		return err
	}
	if err := bench.Forecast.Save(); err != nil {
		progress.Note("the durations of this run were not kept for later estimates: " + err.Error())
	}
	run.Complete = true
	return bench.Run.WriteSummary(*run)
}

// inOneLine returns the figures of a cell for the log of a run.
func inOneLine(c results.Cell) string {
	text := c.Stage + " " + c.Workload
	if c.Searched() {
		interval := fmt.Sprintf("capacity %.0f rps (%.0f to %.0f), ", c.CapacityRPS, c.CapacityLow, c.CapacityHigh)
		switch {
		case c.CapacityHigh == 0 && c.CapacityLow == 0:
			interval = "" // no capacity was searched for, as in a scorecard
		case c.CapacityHigh == 0:
			interval = fmt.Sprintf("capacity %.0f rps or more: every offered rate met the objective; ", c.CapacityLow)
		case c.CapacityLow == 0:
			interval = fmt.Sprintf("capacity below %.0f rps: no offered rate met the objective; ", c.CapacityHigh)
		}
		text += fmt.Sprintf(": %speak %.0f rps, limited by %s", interval, c.PeakRPS, c.LimitedBy)
	} else if s := c.Reference; s != nil {
		text += fmt.Sprintf(": %.0f rps offered, %.0f completed", s.OfferedRPS, s.CompletedRPS)
	}
	if !c.Valid {
		text += ", NOT VALID"
	}
	return text
}

// conclude prints the tables and returns an error for failed cells, or with --strict for invalid ones.
func (o runOptions) conclude(s streams, dir *rundir.Dir, run results.Run) error {
	err := o.output.run(s, run)
	finish(s, dir, o.out, run.Complete)
	if err != nil || !run.Complete {
		return err // nil if interrupted: measure has returned the error
	}
	return verdict(s, dir, run, o.strict)
}
