package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/live"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
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
}

func runCommand(s streams) *cobra.Command {
	var o runOptions
	cmd := &cobra.Command{
		Use:   "run",
		Short: "Measure the ladder: every stage under every workload",
		Long: `Brings up each stage in turn on a fresh copy of the data, measures latency at
one common reference rate and the capacity under the objective, and prints one
row per stage and workload. How long it will take is said before it starts.`,
		Example: `  stagebench run
  stagebench run --quick
  stagebench run --stages lb --workloads read-heavy --set web.hosts=1 --set db.cpu=4
  stagebench run --engines native --format markdown --out runs/native`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s) },
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.stages, "stages", []string{"all"}, "stages to measure, in this order; see: stagebench list stages")
	f.StringSliceVar(&o.workloads, "workloads", []string{"read-heavy", "write-heavy"}, "workloads to measure; see: stagebench list workloads")
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
	f.BoolVar(&o.strict, "strict", false, "exit with status 3 when a cell is invalid")
	formatFlag(cmd, &o.format)
	return cmd
}

// job is a run that has been understood: what to measure, and how.
type job struct {
	topologies []sut.Topology
	workloads  []string
	plan       cell.Plan
	slo        results.SLO
	data       sut.Data
	format     table.Format
}

func (o runOptions) run(ctx context.Context, s streams) (err error) {
	j, err := o.job()
	if err != nil {
		return err
	}
	if err := missingEngines(j.topologies); err != nil {
		return err
	}
	cells := len(j.topologies) * len(j.workloads)
	estimate := j.plan.Estimate(cells, o.engines == "native")
	_, _ = fmt.Fprintf(s.err, "%d cells (%d stages x %d workloads), about %v\n", cells, len(j.topologies), len(j.workloads), estimate.Round(time.Second))

	progress := live.New(s.err, s.terminal, cells)
	defer progress.Done()
	progress.Expect(estimate)
	log := slog.New(slog.NewTextHandler(progress, &slog.HandlerOptions{Level: slog.LevelWarn}))
	up, err := newBringer(j.data, log, progress.Note)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, up.budgets.Close()) }()
	dir, manifest, err := o.open(s, j, up)
	if err != nil {
		return err
	}
	bench := &cell.Bench{
		Driver: vegeta.Driver{}, Plan: j.plan, SLO: j.slo, Seed: o.seed,
		Connections: o.connections, Life: o.life, Run: dir, Progress: progress,
		Up: up.up, Workload: workloadMaker(j.data),
	}
	run := results.Run{Schema: results.Schema, Run: manifest.Run, Warnings: manifest.Warnings}
	err = measure(ctx, bench, j, &run, progress)
	progress.Done()
	return errors.Join(err, o.conclude(s, j, dir, run))
}

// fits says whether the hosts of a topology leave the driver its reserve.
func fits(t sut.Topology) error {
	if spare := float64(cell.Cores()) - t.CPU(); spare < cell.Reserve(cell.Cores()) {
		return usagef("stage %s wants %.2f cores for its hosts, and the driver %.2f, but there are %d\nuse fewer or smaller hosts: --set web.hosts=N, --set db.cpu=UNITS",
			t.Stage, t.CPU(), cell.Reserve(cell.Cores()), cell.Cores())
	}
	return nil
}

// job checks the options, before anything is started.
func (o runOptions) job() (job, error) {
	j := job{workloads: o.workloads, plan: cell.Default()}
	var err error
	if j.format, err = table.ParseFormat(o.format); err != nil {
		return j, usage(err)
	}
	if j.slo, err = results.ParseSLO(o.slo); err != nil {
		return j, usagef("%w\nfor example: --slo '%s'", err, results.DefaultSLO())
	}
	if j.data, err = dataOf(o.data, o.seed); err != nil {
		return j, err
	}
	if o.connections < 1 || o.connections > 10_000 {
		return j, usagef("--connections %d\nwant 1 to 10000", o.connections)
	}
	if o.life < 0 {
		return j, usagef("--connection-life %v\nwant 0, for connections that are kept, or more", o.life)
	}
	switch {
	case o.quick && o.full:
		return j, usagef("--quick and --full exclude each other\nuse one of them, or neither")
	case o.quick:
		j.plan = cell.Quick()
	case o.full:
		j.plan = cell.Full()
	}
	if o.reference != 0 {
		if !(o.reference >= 1 && o.reference <= j.plan.Search.Max) {
			return j, usagef("--reference %v\nwant 1 to %v requests/s", o.reference, j.plan.Search.Max)
		}
		j.plan.ReferenceRPS = o.reference
	}
	if err := o.checkWorkloads(j.data); err != nil {
		return j, err
	}
	j.topologies, err = o.topologies()
	return j, err
}

func (o runOptions) checkWorkloads(data sut.Data) error {
	if len(o.workloads) == 0 {
		return usagef("no workload given\nsee: stagebench list workloads")
	}
	seen := map[string]bool{}
	workload := workloadMaker(data)
	for _, name := range o.workloads {
		if seen[name] {
			return usagef("workload %q is given twice", name)
		}
		seen[name] = true
		if _, err := workload(name); err != nil {
			return usagef("%w\nsee: stagebench list workloads", err)
		}
	}
	return nil
}

func (o runOptions) topologies() ([]sut.Topology, error) {
	knobs, err := knobsOf(o.engines, o.set)
	if err != nil {
		return nil, err
	}
	stages := o.stages
	if len(stages) == 1 && stages[0] == "all" {
		stages = nil
		for _, stage := range sut.Stages() {
			stages = append(stages, string(stage))
		}
	}
	if len(stages) == 0 {
		return nil, usagef("no stage given\nsee: stagebench list stages")
	}
	seen := map[string]bool{}
	var all []sut.Topology
	for _, stage := range stages {
		if seen[stage] {
			return nil, usagef("stage %q is given twice", stage)
		}
		seen[stage] = true
		t, err := sut.Build(sut.Stage(stage), knobs, cell.Unit(cell.Cores()))
		if err != nil {
			return nil, usagef("%w\nsee: stagebench list stages", err)
		}
		if err := fits(t); err != nil {
			return nil, err
		}
		all = append(all, t)
	}
	return all, nil
}

// open makes the run directory and writes the manifest.
func (o runOptions) open(s streams, j job, up *bringer) (*rundir.Dir, results.Manifest, error) {
	id := rundir.NewID(time.Now(), uint32(os.Getpid()))
	m := results.Manifest{
		Schema: results.Schema, Run: id, Command: append([]string{"stagebench"}, s.args...), Started: time.Now(), Seed: o.seed, Data: o.data,
		Config: map[string]any{
			"mode": j.plan.Mode, "plan": j.plan, "slo": j.slo.String(), "connections": o.connections,
			"connection_life": o.life.String(), "knobs": j.topologies[0].Knobs, "workloads": j.workloads,
		},
		Digests: map[string]string{}, Budgets: up.budgets.Describe(),
		UnitCPU: cell.Unit(cell.Cores()), Reserve: cell.Reserve(cell.Cores()),
		Engines: map[string]string{}, Warnings: []string{},
	}
	for _, t := range j.topologies {
		m.Digests[string(t.Stage)] = t.Digest()
		for role, engine := range t.Engines() {
			m.Engines[string(role)] = string(engine)
		}
	}
	environment, err := rundir.ReadEnvironment(os.DirFS("/"), up.binary)
	if err != nil {
		return nil, m, err
	}
	environment.Fill(&m)
	path := o.out
	if path == "" {
		path = rundir.DefaultPath(id)
	}
	dir, err := rundir.Create(path, m)
	return dir, m, err
}

// measure measures all cells; the summary is written anew after each of them,
// so that a run that is killed keeps what it has.
func measure(ctx context.Context, bench *cell.Bench, j job, run *results.Run, progress *live.Progress) error {
	for _, workload := range j.workloads {
		for _, topology := range j.topologies {
			progress.Cell(string(topology.Stage)+" "+workload, len(run.Cells))
			c := bench.Measure(ctx, topology, workload)
			if c.Error != "" && ctx.Err() == nil {
				progress.Note(c.Stage + " " + c.Workload + ": " + c.Error)
			}
			run.Cells = append(run.Cells, c)
			run.Complete = len(run.Cells) == len(j.workloads)*len(j.topologies) && ctx.Err() == nil
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
	if err := table.Render(s.out, table.Ladder(run), j.format); err != nil {
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
		return invalidf("%d of %d cells are invalid\nthe notes below the table say why", invalid, len(run.Cells))
	}
	return nil
}
