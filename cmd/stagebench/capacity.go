package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/live"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
	"github.com/stagebench/stagebench/workloads/pace"
)

// capacityOptions are the flags of `stagebench capacity`.
type capacityOptions struct {
	aim
	quick, full  bool
	verbose      bool
	schedule     pace.Shape
	reference    rate
	minimum, max rate
	output       outputFlags
}

func capacityCommand(s streams) *cobra.Command {
	var o capacityOptions
	cmd := &cobra.Command{
		Use:   "capacity [URL...]",
		Short: "Find the highest rate at which a service meets its objective",
		Long: `Finds the highest rate at which a service meets its objective (the capacity, with a 90 %
interval), its throughput under overload (the peak), and its latency at a reference
rate. It makes several visits, and in each of them offers more than the service can do:
do not use it on a service that others need. --max bounds the offered rate.

Exits with status 4 if no offered rate meets the objective, and with status 3 if the
measurement is invalid.`,
		Example: `  stagebench capacity http://127.0.0.1:8080/ --slo 'p99<100ms,errors<0.1%'
  stagebench capacity http://127.0.0.1:8080/ --workload shop.yaml --max 2000 --quick
  stagebench capacity --workload read-heavy             # the system that "stagebench up" started`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s) },
	}
	o.aim.flags(cmd)
	o.output.runFlags(cmd)
	f := cmd.Flags()
	f.BoolVar(&o.quick, "quick", false, "coarse results: one visit with short steps")
	f.BoolVar(&o.full, "full", false, "five times as many visits, for a narrow interval")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print each step")
	shapeFlag(cmd, &o.schedule)
	f.Var(&o.reference, "reference", "rate at which the latency is measured (default: that of the mode)")
	f.Var(&o.minimum, "min", "lowest rate to offer (default: that of the mode)")
	f.Var(&o.max, "max", "highest rate to offer (default: that of the mode)")
	completeFlags(cmd)
	return cmd
}

// plan returns the plan with the rates of the flags.
func (o capacityOptions) plan() (cell.Plan, error) {
	plan, err := planOf(o.quick, o.full)
	if err != nil {
		return plan, err
	}
	for flag, value := range map[string]rate{"min": o.minimum, "max": o.max, "reference": o.reference} {
		if o.given(flag) && !(value >= pace.MinRate && value <= pace.MaxRate) { // NaN fails both comparisons
			return plan, exit.Usagef("--%s %v\nwant %v to %v requests per second", flag, value, pace.MinRate, pace.MaxRate)
		}
	}
	if o.minimum > 0 {
		plan.Search.Min = float64(o.minimum)
	}
	if o.max > 0 {
		plan.Search.Max = float64(o.max)
		plan.ReferenceRPS = min(plan.ReferenceRPS, plan.Search.Max)
	}
	if o.reference > 0 {
		plan.ReferenceRPS = float64(o.reference)
	}
	if plan.Search.Min > plan.Search.Max || plan.ReferenceRPS > plan.Search.Max {
		return plan, exit.Usagef("--min %v and --reference %v must not be above --max %v",
			plan.Search.Min, plan.ReferenceRPS, plan.Search.Max)
	}
	plan.Shape = o.schedule
	return plan, checkShape(o.schedule, plan.Step.Min)
}

func (o capacityOptions) run(ctx context.Context, s streams) error {
	plan, err := o.plan()
	if err != nil {
		return err
	}
	d, err := o.destination(ctx)
	if err != nil {
		return err
	}
	if d.load.Times != nil {
		return exit.Usagef("%s has its own times, so there is no rate to search for\n"+
			"use attack, or a workload file without phases", o.workload)
	}
	clients, err := o.clients(ctx, s, d)
	if err != nil {
		return err
	}
	defer clients.Close()
	progress := live.New(s.err, s.terminal, o.verbose)
	defer progress.Done()
	stepper, err := o.stepper(ctx, s, d, clients, progress, 0)
	if err != nil {
		return err
	}
	m, err := o.manifest(s, d, map[string]any{"mode": plan.Mode, "plan": plan})
	if err != nil {
		return err
	}
	dir, err := createRun(o.out, m)
	if err != nil {
		return err
	}
	c := d.cell(vegeta.Driver{}.Name())
	closeFiles, err := stepper.Keep(dir, c)
	if err != nil {
		return errors.Join(fmt.Errorf("%w\nchoose another directory with --out DIR", err), closeFiles())
	}
	run := results.Run{Schema: results.Schema, Run: m.Run, Data: d.dataSize()}
	err = clients.LogIn(ctx, d.load.Workload, o.timeout)
	if err == nil {
		err = cell.Search(ctx, stepper, d.load, plan, o.seed, c, func(measured results.Cell) error {
			run.Cells = []results.Cell{measured}
			return dir.WriteSummary(run)
		})
	}
	progress.Done()
	if run.Complete = err == nil; run.Complete {
		err = dir.WriteSummary(run)
	}
	if err = errors.Join(err, closeFiles()); len(run.Cells) == 0 {
		return err
	}
	err = errors.Join(err, o.output.run(s, run))
	finish(s, dir, o.out, run.Complete)
	return errors.Join(err, capacityVerdict(ctx, run.Cells[0]))
}

// capacityVerdict returns why a search was not a success, nil if it was.
func capacityVerdict(ctx context.Context, c results.Cell) error {
	switch {
	case ctx.Err() != nil:
		return nil // the caller has the error
	case c.Reference != nil && c.Reference.Ledger.OK == 0:
		return exit.Missedf("nothing succeeded: %s\ncheck the URL, and what the service expects", c.Reference.MainCause())
	case !c.Valid:
		return exit.Invalidf("the measurement is invalid\nsee the notes below the table")
	case c.CapacityRPS == 0:
		return exit.Missedf("no offered rate met the objective %s\nlower --min, or set another objective with --slo", c.SLO)
	}
	return nil
}
