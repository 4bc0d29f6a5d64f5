package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/compare"
	"github.com/stagebench/stagebench/results/export"
	"github.com/stagebench/stagebench/results/gate"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads/pace"
)

// gateOptions are the flags of `stagebench gate`.
type gateOptions struct {
	base, head           string
	stage, engines       string
	set                  []string
	workload, data       string
	seed                 uint64
	connections          int
	rate                 rate
	slice, burst, warmup time.Duration
	metrics              []string
	margin, material     string
	junit                string
	blocks               int
	warnOnly, verbose    bool
	timeout              time.Duration
	allow                []string
	identity             load.Identity
	out                  string
	output               outputFlags
	given                func(flag string) bool
	// What check makes of the flags.
	wanted         []gate.Metric // with the margins of the user
	baseIs, headIs contender
}

func gateCommand(s streams) *cobra.Command {
	var o gateOptions
	cmd := &cobra.Command{
		Use:   "gate --base OLD --head NEW",
		Short: "Decide whether a new version is slower than an old one; the exit status tells",
		Long: `Compares a new version, the head, with an old one, the base. Both are measured in turn,
in blocks of one slice each, in random order, with the same arrivals and keys, at about
half of the capacity of the base. The gate decides after 8, 12, 18, 27 or 40 blocks:

  regression     a metric is worse, and by 2 % at least; if nothing changed, a gate says
                 so in at most 1 of 100 cases
  pass           for every metric, a change for the worse by its margin is excluded;
                 a smaller one may pass
  inconclusive   neither, after the last block
  invalid        something disturbed more than a quarter of the blocks

Exit status: 0 pass, 4 regression, 5 inconclusive, 3 invalid. With --warn-only, a
regression and an inconclusive gate are only reported, with status 0.

Base and head are both one of

  a binary       another build of stagebench, which runs the nodes of the service;
                 without --head it is compared with this one
  settings       knobs of the service, such as cache.engine=redis,db.cpu=2, or stage=lb
  a URL          services that run already; each burst sends more than they can do
  a run          directories of two runs of the same command; --stage and --workload
                 choose a cell of them
  files          of other tools: Go benchmark text with several samples, or results of
                 vegeta or summaries of k6, one for each slice: new-1.json,new-2.json

Metrics, with the margins that --margin changes: cpu (CPU time per request) 5 %, p50, p95
5 %, p99 10 %, errors 0.5 percentage points, burst (throughput under overload) 5 %.`,
		Example: `  stagebench gate --base ./stagebench-main                  # against this binary
  stagebench gate --stage cache --base cache.engine=resp --head cache.engine=redis
  stagebench gate --base http://127.0.0.1:8080/ --head http://127.0.0.1:8081/ --rate 200 --burst 0
  stagebench gate --base runs/monday --head runs/tuesday --margin p95=10%`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.given = cmd.Flags().Changed
			return o.run(cmd.Context(), s)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.base, "base", "", "the old version: a binary, settings, a URL, or a run")
	f.StringVar(&o.head, "head", "", "the new version; for a binary, the default is this one")
	o.flags(cmd)
	f.IntVar(&o.blocks, "max-blocks", gate.MaxBlocks(), "end after this number of blocks")
	f.StringVar(&o.margin, "margin", "", "changes for the worse that a pass excludes, such as p99=20%,errors=1%")
	f.StringVar(&o.material, "material", "",
		"smallest changes that are a regression, such as cpu=10% (default: 2 %, errors 0.1 percentage points)")
	f.StringVar(&o.junit, "junit", "", "also write the verdicts to this file, as JUnit XML")
	f.BoolVar(&o.warnOnly, "warn-only", false, "report a regression or an inconclusive gate, but exit with status 0")
	f.DurationVar(&o.timeout, "timeout", 10*time.Second, "timeout of one request, for URLs")
	f.StringSliceVar(&o.allow, "allow-host", nil, "allow load to this host outside the loopback network")
	identityFlags(cmd, &o.identity)
	o.output.runFlags(cmd)
	completeFlags(cmd)
	cmd.AddCommand(selftestCommand(s))
	return cmd
}

// flags adds the flags that are also those of the selftest.
func (o *gateOptions) flags(cmd *cobra.Command) {
	f := cmd.Flags()
	f.StringVar(&o.stage, "stage", string(sut.Single), "stage of the service, for binaries and settings")
	f.StringVar(&o.engines, "engines", "embedded", "embedded (nothing to install) or native (PostgreSQL, HAProxy)")
	f.StringArrayVar(&o.set, "set", nil, "set a knob in base and head, NAME=VALUE; may be repeated")
	f.StringVar(&o.workload, "workload", "",
		"workload name or FILE.yaml (default: read-heavy; for a URL: request only the URL)")
	f.StringVar(&o.data, "data", "small", "size of the data set: "+strings.Join(sut.DataSizes(), ", "))
	f.Uint64Var(&o.seed, "seed", 1, "seed of data, arrivals, keys, the order of slices, and the test")
	f.IntVarP(&o.connections, "connections", "c", 64, "number of connections, the maximum of requests in flight")
	f.VarP(&o.rate, "rate", "r", "rate of all slices in requests/s; 0 = 30 % of the throughput of the base under overload")
	f.DurationVar(&o.slice, "slice", 4*time.Second, "length of a slice")
	f.DurationVar(&o.burst, "burst", 2*time.Second, "length of the overload after each slice; 0 = none")
	f.DurationVar(&o.warmup, "warmup", 500*time.Millisecond, "length of a part of the warm-up, which has up to 4 parts")
	f.StringSliceVar(&o.metrics, "metrics", nil, "compare only these metrics, such as cpu,p95 (default: all)")
	f.StringVarP(&o.out, "out", "o", "", "directory of the run (default runs/ID)")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print each step")
}

// check checks the flags. It starts nothing but `--version` of binaries.
func (o *gateOptions) check(ctx context.Context) (err error) {
	switch {
	case o.base == "":
		return exit.Usagef("gate wants --base, the old version\nfor example: stagebench gate --base ./stagebench-main")
	case o.blocks < gate.Looks()[0].Blocks:
		return exit.Usagef("--max-blocks %d\nwant %d or more: the gate cannot decide earlier",
			o.blocks, gate.Looks()[0].Blocks)
	}
	if err := o.checkSlices(); err != nil {
		return err
	}
	if o.baseIs, err = contenderOf(ctx, "base", o.base); err != nil {
		return err
	}
	if o.head == "" && o.baseIs.kind == aBinary {
		o.head = ownBinary
	}
	if o.headIs, err = contenderOf(ctx, "head", o.head); err != nil {
		return err
	}
	if o.baseIs.kind != o.headIs.kind {
		return exit.Usagef("--base %s is %s, and --head %s is %s\nname two of the same kind",
			o.base, o.baseIs.kind, o.head, o.headIs.kind)
	}
	if o.baseIs.kind == aURL && o.rate == 0 && o.burst == 0 {
		return exit.Usagef("without --rate, the base is overloaded once to choose a rate, but --burst is 0\n" +
			"add --rate, for example --rate 200")
	}
	if o.baseIs.kind == aFile { // the files say which metrics there are
		return nil
	}
	o.wanted, err = o.bounded(gate.Metrics())
	return err
}

// bounded returns the metrics that the user wants, with the bounds of the user.
func (o gateOptions) bounded(metrics []gate.Metric) (wanted []gate.Metric, err error) {
	wanted = metrics
	if len(o.metrics) > 0 {
		if wanted, err = gate.Only(metrics, o.metrics); err != nil {
			return nil, exit.Usagef("--metrics: %w", err)
		}
	}
	if wanted, err = gate.With(wanted, o.material, gate.SetMaterial); err != nil {
		return nil, exit.Usagef("--material %w", err)
	}
	if wanted, err = gate.With(wanted, o.margin, gate.SetMargin); err != nil {
		return nil, exit.Usagef("--margin %w", err)
	}
	return wanted, nil
}

// checkSlices checks the flags that a selftest has, too.
func (o gateOptions) checkSlices() error {
	switch {
	case o.slice < time.Second || o.burst != 0 && o.burst < time.Second || o.warmup <= 0 || o.timeout <= 0:
		return exit.Usagef("--slice %v, --burst %v, --warmup %v, --timeout %v\n"+
			"want 1s or more (--burst also 0), and more than 0 for --warmup and --timeout",
			o.slice, o.burst, o.warmup, o.timeout)
	case o.rate != 0 && !(o.rate >= 1 && o.rate <= pace.MaxRate):
		return exit.Usagef("--rate %v\nwant 1 to %v requests/s, or 0", o.rate, pace.MaxRate)
	case o.connections < 1 || o.connections > 10_000:
		return exit.Usagef("--connections %d\nwant 1 to 10000", o.connections)
	}
	return nil
}

func (o gateOptions) run(ctx context.Context, s streams) error {
	checked := o // after an interruption, the check still uses it
	o, err := interruptible(ctx, func() (gateOptions, error) {
		err := checked.check(ctx) // it reads files
		return checked, err
	})
	if err != nil {
		return err
	}
	switch o.baseIs.kind {
	case aRun:
		return o.recorded(ctx, s)
	case aFile:
		return o.foreign(ctx, s)
	}
	var result *results.Gate
	p, err := o.onPair(ctx, s, func(p *pair) (err error) {
		result, err = p.compare(ctx, o.wanted, o.blocks)
		return err
	})
	if result == nil {
		return err
	}
	failed := o.write(s, p.run)
	finish(s, p.dir, o.out, p.run.Complete)
	return errors.Join(err, o.verdict(s, *result), failed) // the first status counts: that of the verdict
}

// write writes the gate of a run to the standard output, and to the file of --junit.
func (o gateOptions) write(s streams, run results.Run) error {
	err := o.output.run(s, run)
	if o.junit == "" {
		return err
	}
	var text bytes.Buffer
	if failed := export.JUnit(&text, export.Checks(run)...); failed != nil {
		return errors.Join(err, failed)
	}
	if failed := os.WriteFile(o.junit, text.Bytes(), 0o644); failed != nil {
		err = errors.Join(err, fmt.Errorf("--junit: %w\nname a file that can be written", failed))
	}
	return err
}

// verdict returns the error of a verdict that is not a pass.
func (o gateOptions) verdict(s streams, g results.Gate) error {
	switch {
	case g.Verdict == results.GatePass:
		return nil
	case g.Verdict == results.GateUndecided: // it was interrupted, and that is the error
		return nil
	case g.Verdict == results.GateInvalid:
		return exit.Invalidf("the gate is invalid: %s\nrepeat it on a quiet machine", g.Why)
	case o.warnOnly:
		_, _ = fmt.Fprintf(s.err, "WARNING: %s: %s\n", g.Verdict, g.Why)
		return nil
	case g.Verdict == results.GateRegression:
		return exit.Missedf("regression: %s\nif this is expected, merge it with --warn-only once: the next base includes it",
			g.Why)
	}
	return exit.Undecidedf("inconclusive: %s\n"+
		"longer slices (--slice), a quieter machine or larger margins (--margin) decide",
		g.Why)
}

// recorded judges two runs that were measured before.
func (o gateOptions) recorded(ctx context.Context, s streams) error {
	read := func(path string) (compare.Run, error) {
		return interruptible(ctx, func() (compare.Run, error) {
			run, m, err := rundir.Read(path)
			return compare.Run{Run: run, Manifest: m, Name: path}, exit.Usage(err)
		})
	}
	base, err := read(o.base)
	if err != nil {
		return err
	}
	head, err := read(o.head)
	if err != nil {
		return err
	}
	if why := notComparable(base, head); why != "" {
		return exit.Invalidf("the runs cannot be compared: %s\nmeasure both with the same command on the same machine", why)
	}
	if err := errors.Join(o.oneCell(&base), o.oneCell(&head)); err != nil {
		return err
	}
	pairs, unequal := gate.Recorded(base.Run, head.Run)
	if len(pairs) == 0 {
		return exit.Invalidf("the runs have no slice in common: another rate, other ops, or other cells\n" +
			"measure both with the same command and the same --seed")
	}
	metrics := gate.InAll(o.wanted, pairs)
	missing := without(o.wanted, metrics)
	if len(o.metrics) > 0 && len(missing) > 0 || len(metrics) == 0 {
		return exit.Invalidf("the slices of the runs have no %s\nleave it out with --metrics, or measure longer slices",
			strings.Join(missing, ", "))
	}
	warnings := []string{"base and head were measured at different times: what changed on the machine in between counts " +
		"as a change of the head"}
	if len(missing) > 0 {
		warnings = append(warnings, "not compared, because a slice of base or head lacks them: "+strings.Join(missing, ", "))
	}
	if unequal > 0 {
		warnings = append(warnings, fmt.Sprintf("%d slices have no partner with the same ops in the other run", unequal))
	}
	return o.judge(s, head.Run.Run, metrics, pairs, warnings)
}

// oneCell leaves one cell of a run: that of --stage and --workload. Several cells in one gate would hide a regression
// of one of them.
func (o gateOptions) oneCell(r *compare.Run) error {
	r.Cells = slices.DeleteFunc(slices.Clone(r.Cells), func(c results.Cell) bool {
		return o.given("stage") && c.Stage != o.stage || o.workload != "" && c.Workload != o.workload
	})
	switch {
	case len(r.Cells) != 1:
		return exit.Usagef("%s has %d such cells, and a gate compares one\nchoose it with --stage and --workload; see: "+
			"stagebench show %s", r.Name, len(r.Cells), r.Name)
	case r.Cells[0].Error != "":
		return exit.Invalidf("%s: the cell failed: %s\nmeasure it again", r.Name, r.Cells[0].Error)
	}
	return nil
}

// judge judges blocks that were measured before, and writes the result. Run is the id of the head, if it has one.
func (o gateOptions) judge(s streams, run string, metrics []gate.Metric, pairs []gate.Pair, warnings []string) error {
	g, err := gate.New(metrics, o.seed)
	if err != nil {
		return err
	}
	for _, p := range pairs {
		if _, counted := g.NextLook(); counted < o.blocks {
			g.Add(p.Base, p.Head, false)
		}
	}
	result := g.Result(true)
	result.Base, result.Head, result.Warnings = o.base, o.head, append(result.Warnings, warnings...)
	failed := o.write(s, results.Run{Schema: results.Schema, Run: run, Complete: true, Gate: &result})
	return errors.Join(o.verdict(s, result), failed)
}

// without returns the names of the metrics of all that are not in some.
func without(all, some []gate.Metric) (names []string) {
	for _, m := range all {
		if !slices.ContainsFunc(some, func(other gate.Metric) bool { return other.Name == m.Name }) {
			names = append(names, m.Name)
		}
	}
	return names
}
