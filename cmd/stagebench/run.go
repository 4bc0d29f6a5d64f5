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
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets/faults"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
)

// runOptions are the flags of `stagebench run`.
type runOptions struct {
	stages, workloads []string
	engines           string
	set               []string
	quick, full       bool
	out, format       string
	data              string
	seed              uint64
	connections       int
	slo               string
	strict            bool
	life              time.Duration
	reference         float64
	replay            load.Replay
	rate              float64
	duration          time.Duration
	faults            string
	given             func(flag string) bool
}

func runCommand(s streams) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Measure the ladder: every stage under every workload",
		Long: `Brings up each stage in turn on a fresh copy of the data, measures latency at
one common reference rate and the capacity under the objective, and prints one
row per stage and workload. How long it will take is said before it starts.

With --rate one rate is measured instead of a capacity. With --faults that is
done while hosts or nodes fail as a file says:

  - {at: 3s, do: kill, who: primary}     # since the start of the measured step
  - {at: 6s, do: pause, who: web-2}      # a host, a node, or a role: lb, web, cache,
  - {at: 9s, do: resume, who: web-2}     # db, blob, and of the databases primary, replica
  - {at: 12s, do: restart, who: replica} # kill, and say when it serves again

What happened is printed below the table and is in summary.json and timeline.csv.`,
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
	f := cmd.Flags()
	f.StringSliceVar(&o.stages, "stages", []string{"all"}, "stages to measure, in this order; see: stagebench list stages")
	f.StringSliceVar(&o.workloads, "workloads", []string{"read-heavy", "write-heavy"}, "workloads to measure: names (stagebench list workloads), a workload FILE.yaml, or trace:FILE (an access log)")
	f.StringVar(&o.engines, "engines", "embedded", "embedded (nothing to install) or native (PostgreSQL, HAProxy)")
	f.StringArrayVar(&o.set, "set", nil, "set a knob, NAME=VALUE; may be repeated; see: stagebench list knobs")
	f.BoolVar(&o.quick, "quick", false, "a coarse look in about a minute")
	f.BoolVar(&o.full, "full", false, "long steps, and five repeats with restarted processes for an interval")
	f.StringVar(&o.out, "out", "", "directory of the run (default runs/ID)")
	f.StringVar(&o.data, "data", "small", "size of the data set: "+strings.Join(sut.DataSizes(), ", "))
	f.Uint64Var(&o.seed, "seed", 1, "of data, arrivals and keys")
	f.IntVar(&o.connections, "connections", 64, "connections of the driver")
	f.DurationVar(&o.life, "connection-life", 0, "renew connections that are older; 0 = keep them")
	f.StringVar(&o.slo, "slo", results.DefaultSLO().String(), "the objective that capacity is measured against")
	f.Float64Var(&o.reference, "reference", 0, "the common rate in requests/s at which latency is compared; 0 = the mode's own")
	f.Float64Var(&o.rate, "rate", 0, "measure this rate in requests/s instead of searching for the capacity; 0 = search, or with --faults the reference rate")
	f.DurationVar(&o.duration, "duration", 30*time.Second, "with --rate or --faults: how long")
	f.StringVar(&o.faults, "faults", "", "a YAML file of what is done to hosts and nodes while one rate is measured")
	f.BoolVar(&o.strict, "strict", false, "exit with status 3 when a cell is invalid")
	replayFlags(cmd, &o.replay)
	formatFlag(cmd, &o.format)
	return cmd
}

// job is a run that has been understood: what to measure, and how.
type job struct {
	topologies []sut.Topology
	loads      []load.Load
	plan       cell.Plan
	fixed      *cell.Fixed // nil = the capacity is searched for
	slo        results.SLO
	data       sut.Data
}

func (o runOptions) run(ctx context.Context, s streams) (err error) {
	j, err := o.job()
	if err != nil {
		return err
	}
	if err := missingEngines(j.topologies); err != nil {
		return err
	}
	cells := len(j.topologies) * len(j.loads)
	estimate := j.estimate(o.engines == "native")
	_, _ = fmt.Fprintf(s.err, "%d cells (%d stages x %d workloads), about %v\n", cells, len(j.topologies), len(j.loads), estimate.Round(time.Second))

	progress := live.New(s.err, s.terminal, cells)
	defer progress.Done()
	progress.Expect(estimate)
	log := slog.New(slog.NewTextHandler(progress, &slog.HandlerOptions{Level: slog.LevelWarn}))
	up, err := newBringer(j.data, log, progress.Note)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, up.Budgets.Close()) }()
	dir, manifest, err := o.open(s, j, up)
	if err != nil {
		return err
	}
	bench := &cell.Bench{
		Driver: vegeta.Driver{}, Plan: j.plan, SLO: j.slo, Seed: o.seed,
		Connections: o.connections, Life: o.life, Run: dir, Progress: progress,
		Fixed: j.fixed, Up: up.up,
	}
	run := results.Run{Schema: results.Schema, Run: manifest.Run, Warnings: manifest.Warnings}
	err = measure(ctx, bench, j, &run, progress)
	progress.Done()
	return errors.Join(err, o.conclude(s, j, dir, run))
}

// fits says whether the hosts of a topology leave the driver its reserve.
func fits(t sut.Topology) error {
	if spare := float64(cell.Cores()) - t.CPU(); spare < cell.Reserve(cell.Cores()) {
		return exit.Usagef("stage %s wants %.2f cores for its hosts, and the driver %.2f, but there are %d\nuse fewer or smaller hosts: --set web.hosts=N, --set db.cpu=UNITS",
			t.Stage, t.CPU(), cell.Reserve(cell.Cores()), cell.Cores())
	}
	return nil
}

// job checks the options, before anything is started.
func (o runOptions) job() (job, error) {
	j := job{plan: cell.Default()}
	var err error
	if j.slo, err = results.ParseSLO(o.slo); err != nil {
		return j, exit.Usagef("%w\nfor example: --slo '%s'", err, results.DefaultSLO())
	}
	if j.data, err = dataOf(o.data, o.seed); err != nil {
		return j, err
	}
	if o.connections < 1 || o.connections > 10_000 {
		return j, exit.Usagef("--connections %d\nwant 1 to 10000", o.connections)
	}
	if o.life < 0 {
		return j, exit.Usagef("--connection-life %v\nwant 0, for connections that are kept, or more", o.life)
	}
	switch {
	case o.quick && o.full:
		return j, exit.Usagef("--quick and --full exclude each other\nuse one of them, or neither")
	case o.quick:
		j.plan = cell.Quick()
	case o.full:
		j.plan = cell.Full()
	}
	if o.reference != 0 {
		if !(o.reference >= 1 && o.reference <= j.plan.Search.Max) {
			return j, exit.Usagef("--reference %v\nwant 1 to %v requests/s", o.reference, j.plan.Search.Max)
		}
		j.plan.ReferenceRPS = o.reference
	}
	if j.loads, err = o.loads(j.data); err != nil {
		return j, err
	}
	if err := o.bounds(j); err != nil {
		return j, err
	}
	if j.topologies, err = o.topologies(); err != nil {
		return j, err
	}
	j.fixed, err = o.fixed(j)
	return j, err
}

// fixed is the one rate to measure, and what is done to the target meanwhile; nil
// when the capacity is to be searched for.
func (o runOptions) fixed(j job) (*cell.Fixed, error) {
	switch {
	case o.rate == 0 && o.faults == "" && o.given("duration"):
		return nil, exit.Usagef("--duration is for --rate and --faults: the steps of a search are as long as its mode says\ngive one of them, or choose a mode with --quick or --full")
	case o.rate == 0 && o.faults == "":
		return nil, nil
	case o.rate != 0 && o.reference != 0:
		return nil, exit.Usagef("--reference is a rate beside the search, and with --rate there is none\nleave one or the other out")
	}
	fixed := &cell.Fixed{RPS: o.rate, Duration: o.duration}
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
			return nil, exit.Usagef("--rate and --faults are for workloads without times of their own, and %s is a trace\nleave one or the other out", l.Workload.Name())
		}
	}
	if o.faults == "" {
		return fixed, nil
	}
	text, err := os.ReadFile(o.faults)
	if err != nil {
		return nil, exit.Usagef("--faults: %w", err)
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
		return nil, exit.Usagef("--loop has no end\nrun replays a trace once; stagebench attack --duration D --loop goes on for D")
	}
	maker := load.Maker{Data: data, Replay: o.replay, Service: true}
	var loads []load.Load
	for _, name := range o.workloads {
		l, err := maker.Make(name)
		if err != nil {
			return nil, exit.Usage(err)
		}
		name := l.Workload.Name()
		if slices.ContainsFunc(loads, func(before load.Load) bool { return before.Workload.Name() == name }) {
			return nil, exit.Usagef("workload %q is given twice", name)
		}
		if rundir.CheckName(name) != nil {
			return nil, exit.Usagef("workload %q cannot have a directory of that name in the run: want letters, digits and any of _ . , = + -\nrename the file, or give a workload file another name in it: name: shop", name)
		}
		loads = append(loads, l)
	}
	return loads, noTrace(o.replay, loads)
}

// bounds refuses an objective for a class that is not there: it would always be
// met.
func (o runOptions) bounds(j job) error {
	if !o.given("slo") {
		return nil // the default is for all workloads that we ship
	}
	var known []string
	for _, l := range j.loads {
		classes := l.Classes()
		if classes == nil {
			return nil
		}
		known = append(known, classes...)
	}
	slices.Sort(known)
	for _, class := range slices.Sorted(maps.Keys(j.slo.Classes)) {
		if !slices.Contains(known, class) {
			return exit.Usagef("--slo %s: no workload has ops of class %q\nwant one of %s", o.slo, class, strings.Join(slices.Compact(known), ", "))
		}
	}
	return nil
}

// estimate is how long the job will take.
func (j job) estimate(native bool) time.Duration {
	var sum time.Duration
	for _, l := range j.loads {
		length := l.Length
		if j.fixed != nil {
			length = j.fixed.Duration
		}
		sum += j.plan.Estimate(len(j.topologies), native, length)
	}
	return sum
}

func (o runOptions) topologies() ([]sut.Topology, error) {
	knobs, err := knobsOf(o.engines, o.set)
	if err != nil {
		return nil, err
	}
	stages := o.stages
	if len(stages) == 1 && stages[0] == "all" {
		stages = nil
		for _, rung := range ladder.Rungs() {
			stages = append(stages, string(rung.Stage))
		}
	}
	if len(stages) == 0 {
		return nil, exit.Usagef("no stage given\nsee: stagebench list stages")
	}
	var all []sut.Topology
	for i, stage := range stages {
		if slices.Contains(stages[:i], stage) {
			return nil, exit.Usagef("stage %q is given twice", stage)
		}
		t, err := ladder.Build(sut.Stage(stage), knobs, cell.Unit(cell.Cores()))
		if err != nil {
			return nil, exit.Usagef("%w\nsee: stagebench list stages, stagebench list knobs", err)
		}
		if err := fits(t); err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// open makes the run directory and writes the manifest.
func (o runOptions) open(s streams, j job, up bringer) (*rundir.Dir, results.Manifest, error) {
	id := rundir.NewID(time.Now(), uint32(os.Getpid()))
	m := results.Manifest{
		Schema: results.Schema, Run: id, Command: append([]string{"stagebench"}, s.args...), Started: time.Now(), Seed: o.seed, Data: o.data,
		Config: map[string]any{
			"mode": j.plan.Mode, "plan": j.plan, "slo": j.slo.String(), "connections": o.connections,
			"connection_life": o.life.String(), "knobs": knobsOfAll(j.topologies), "workloads": o.workloads, "speed": o.replay.Speed, "max_gap": o.replay.MaxGap.String(),
		},
		Digests: map[string]string{}, Budgets: up.Budgets.Describe(),
		UnitCPU: cell.Unit(cell.Cores()), Reserve: cell.Reserve(cell.Cores()),
		Engines: map[string]string{}, Warnings: []string{},
	}
	if j.fixed != nil {
		m.Config["rate_rps"], m.Config["duration"], m.Config["faults"] = j.fixed.RPS, j.fixed.Duration.String(), j.fixed.Faults.Texts()
	}
	for _, t := range j.topologies {
		m.Digests[string(t.Stage)] = t.Digest()
		for role, engine := range ladder.Engines(t) {
			m.Engines[string(role)] = string(engine)
		}
	}
	if err := rundir.FillEnvironment(&m, os.DirFS("/"), up.Binary); err != nil {
		return nil, m, err
	}
	path := o.out
	if path == "" {
		path = rundir.DefaultPath(id)
	}
	dir, err := rundir.Create(path, m)
	return dir, m, err
}

// knobsOfAll is the knobs as they are in effect, by name: the value that all
// stages have, or each stage's own where a stage has no such thing and resets it.
func knobsOfAll(topologies []sut.Topology) map[string]any {
	all := map[string]any{}
	for name, value := range topologies[0].Knobs {
		all[name] = value
		byStage := map[string]string{}
		for _, t := range topologies {
			byStage[string(t.Stage)] = t.Knobs[name]
			if t.Knobs[name] != value {
				all[name] = byStage
			}
		}
	}
	return all
}

// measure measures all cells; the summary is written anew after each of them,
// so that a run that is killed keeps what it has.
func measure(ctx context.Context, bench *cell.Bench, j job, run *results.Run, progress *live.Progress) error {
	for _, l := range j.loads {
		for _, topology := range j.topologies {
			progress.Cell(string(topology.Stage)+" "+l.Workload.Name(), len(run.Cells))
			c := bench.Measure(ctx, topology, l)
			if c.Error != "" && ctx.Err() == nil {
				progress.Note(c.Stage + " " + c.Workload + ": " + c.Error)
			}
			run.Cells = append(run.Cells, c)
			run.Complete = len(run.Cells) == len(j.loads)*len(j.topologies) && ctx.Err() == nil
			if err := bench.Run.WriteSummary(*run); err != nil {
				return err
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
	}
	return nil
}

// conclude prints the table and says how the run ended.
func (o runOptions) conclude(s streams, j job, dir *rundir.Dir, run results.Run) error {
	tables := []table.Table{table.Ladder(run)}
	for _, l := range j.loads {
		tables = append(tables, table.Traces(l.Trace)...)
	}
	if j.fixed != nil {
		tables = append(tables, table.EventsAndOutages(run)...)
	}
	var err error
	if format := table.Format(o.format); len(tables) == 1 { // JSON is then the ladder itself, and no list
		err = table.Render(s.out, tables[0], format)
	} else {
		err = table.RenderAll(s.out, tables, format)
	}
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(s.err, "\nThe run is in %s\n", dir.Path())
	if o.out == "" {
		_ = dir.PointLatest() // a convenience; the path has been printed
	}
	var failed, invalid int
	for _, c := range run.Cells {
		switch {
		case c.Error != "":
			failed++
		case !c.Valid:
			invalid++
		}
	}
	switch {
	case !run.Complete:
		return nil // whoever interrupted it knows, and has been told where the rest is
	case failed > 0:
		return fmt.Errorf("%d of %d cells could not be measured\nthe nodes' logs are below %s", failed, len(run.Cells), dir.Path())
	case invalid > 0 && o.strict:
		return exit.Invalidf("%d of %d cells are invalid\nthe notes below the table say why", invalid, len(run.Cells))
	}
	return nil
}
