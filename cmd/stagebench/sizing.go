package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/scorecard"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

// sizingOptions are the flags and arguments of `stagebench sizing`.
type sizingOptions struct {
	runOptions
	prices string // "" = the example prices
	tier   string // a ladder.Scaling.Name
	times  int
}

func sizingCommand(s streams) *cobra.Command {
	var o sizingOptions
	names, long := scalings()
	cmd := &cobra.Command{
		Use:   "sizing " + strings.Join(names, "|") + " TIMES",
		Short: "Compare one large host of a tier with several small ones, with prices",
		Long: `Measures a stage three times: with one host of a tier, with one host that is TIMES as
large (scaled up), and with TIMES hosts (scaled out). The last two have the same CPU in
sum. Shows the capacity of each, what limits it, and what it costs. The visits of the
three take turns, so that a machine that becomes slower does so for all of them.
Memory budgets, such as cache.memory_mb, are those of each host: they grow only with
the number of hosts.
` + long + `
Prices are made up, unless --prices names a file: see stagebench scorecard --help.`,
		Example: `  stagebench sizing web 3
  stagebench sizing replica 3 --workload read-heavy
  stagebench sizing shard 2 --workload write-heavy --prices prices.yaml
  stagebench sizing web 2 --stages lb,cache --engines native --format markdown`,
		ValidArgs: names,
		Args: func(cmd *cobra.Command, args []string) error {
			var err error
			if len(args) == 2 && slices.Contains(names, args[0]) {
				o.tier = args[0]
				o.times, err = strconv.Atoi(args[1])
			}
			if o.tier == "" || err != nil || o.times < 2 {
				return exit.Usagef("%s wants one of %s, and a number from 2\nfor example: stagebench sizing web 3",
					cmd.CommandPath(), strings.Join(names, ", "))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.given = cmd.Flags().Changed
			return o.run(cmd.Context(), s)
		},
	}
	f := cmd.Flags()
	o.commonFlags(cmd, "stages to measure; without this flag, the first one in which the tier can have several hosts",
		"embedded (nothing to install) or native (PostgreSQL, HAProxy, ...)",
		"requests/s at which the latency is measured; 0 = 100 for hosts of a tenth of a core")
	o.workloads = []string{"read-heavy"}
	f.StringVar(&o.workloads[0], "workload", "read-heavy",
		"name of a workload (see: stagebench list workloads), or a FILE.yaml")
	f.StringVar(&o.slo, "slo", results.DefaultSLO().String(), "objective of the capacity search")
	f.BoolVar(&o.quick, "quick", false, "coarse results: one visit with short steps")
	f.BoolVar(&o.full, "full", false, "five times as many visits, for narrow intervals")
	f.StringVar(&o.prices, "prices", "", "YAML file of the prices of hosts")
	o.output.flags(cmd)
	completeFlags(cmd)
	return cmd
}

func (o sizingOptions) run(ctx context.Context, s streams) error {
	prices, err := readPrices(o.prices)
	if err != nil {
		return err
	}
	if o.stages, err = o.sizedStages(); err != nil {
		return err
	}
	o.connections, o.replay.Speed = cell.Connections(cell.Cores()), 1
	j, err := interruptible(ctx, o.job) // it reads files
	if err != nil {
		return err
	}
	if j.loads[0].Times != nil {
		return exit.Usagef("%s has its own times\nuse a workload without them", j.loads[0].Workload.Name())
	}
	all, cells, role, err := o.plan(j)
	if err != nil {
		return err
	}
	j.plan = j.plan.Across(len(cells))
	knobs := map[string]sut.Knobs{} // as in the cells; the topologies of the job are not measured
	for _, c := range cells {
		knobs[string(c.Topology.Stage)+" "+c.Variant] = c.Topology.Knobs
	}
	j.extra = map[string]any{"prices": prices, "sizing": fmt.Sprintf("%s x%d", o.tier, o.times), "knobs": knobs}
	err = o.show(ctx, s, j, cells, func(measured []results.Cell) []table.Table {
		for i, c := range measured {
			all[i].Cell = c
		}
		for stage := range slices.Chunk(all, sizes) {
			scorecard.Compare(stage, prices)
		}
		return []table.Table{table.Sizings(all, string(role), prices.Currency)}
	})
	for _, sized := range all {
		if c := sized.Cell; c.Error != "" {
			err = errors.Join(err, fmt.Errorf("stage %s could not be measured: %s", c.Stage, c.Error))
		}
	}
	return err
}

// sizedStages returns the stages to measure.
func (o sizingOptions) sizedStages() ([]string, error) {
	if o.given("stages") {
		return o.stages, nil
	}
	knobs, err := knobsOf(o.engines, o.set)
	if err != nil {
		return nil, err
	}
	var last error // the error of the first stage in which the tier can be scaled, or of the last one
	for _, stage := range stageNames() {
		t, err := ladder.Build(sut.Stage(stage), knobs, cell.Unit(cell.Cores()))
		if err != nil {
			return nil, exit.Usage(err)
		}
		if _, _, err = ladder.UpAndOut(t, o.tier, o.times); err == nil {
			return []string{stage}, nil
		}
		last = err
		if _, _, err := ladder.Scale(t, o.tier, 1); err == nil {
			break
		}
	}
	return nil, exit.Usage(last)
}

// sizes is the number of sizings of a stage: one host, scaled up, scaled out.
const sizes = 3

// plan returns the sizings of all stages, and their cells.
func (o sizingOptions) plan(j job) (all []scorecard.Sizing, cells []cell.Spec, role sut.Role, err error) {
	for _, t := range j.topologies {
		var sized []ladder.Sized
		if sized, role, err = ladder.UpAndOut(t, o.tier, o.times); err != nil {
			return nil, nil, role, exit.Usage(err)
		}
		for _, sized := range sized {
			if err := fits(sized.Topology); err != nil {
				return nil, nil, role, err
			}
			all = append(all, scorecard.Sizing{Hosts: sized.Hosts, Units: sized.Units, All: sizesOf(sized.Topology)})
			cells = append(cells, cell.Spec{
				Topology: sized.Topology, Load: j.loads[0], Variant: fmt.Sprintf("%dx%g", sized.Hosts, sized.Units),
			})
		}
	}
	return all, cells, role, nil
}
