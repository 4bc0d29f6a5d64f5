package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/scorecard"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets/faults"
)

// scorecardOptions are the flags of `stagebench scorecard`.
type scorecardOptions struct {
	runOptions
	workload string
	pause    time.Duration
	prices   string // "" = the example prices
}

func scorecardCommand(s streams) *cobra.Command {
	var o scorecardOptions
	cmd := &cobra.Command{
		Use:   "scorecard",
		Short: "Show for each stage what a dead host costs, and what requests cost",
		Long: `Answers six questions for each stage:

  availability    which share of requests fails when a host of each role is killed
  performance     the throughput under overload, and the latency at the reference rate
  reliability     which acknowledged writes and sessions are lost, and how many reads are stale
  scalability     what one more web host adds
  manageability   how many processes there are, and how long hosts take to come up and to be
                  replaced
  cost            host-hours and money for a million requests

It brings each stage up twice, or three times if there is CPU for one more web host. In one of
these systems it kills a host of each role, one after the other, at the reference rate.

Prices are made up, unless --prices names a file:

  currency: EUR
  sizes:                        # a host costs as much as the smallest size that is large enough
    - {units: 1, hour: 0.012}   # a unit is the CPU of the smallest host
    - {units: 2, hour: 0.025}`,
		Example: `  stagebench scorecard
  stagebench scorecard --stages lb,replicas --prices prices.yaml
  stagebench scorecard --engines native --format markdown --out runs/scorecard`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o.given = cmd.Flags().Changed
			return o.run(cmd.Context(), s)
		},
	}
	f := cmd.Flags()
	o.commonFlags(cmd, "stages to measure; see: stagebench list stages",
		"embedded (nothing to install) or native (PostgreSQL, HAProxy, ...)",
		"requests/s of the latency, and while hosts are killed; 0 = 100 for hosts of a tenth of a core")
	f.StringVar(&o.workload, "workload", "read-heavy",
		"name of a workload (see: stagebench list workloads), or a FILE.yaml")
	f.DurationVar(&o.pause, "pause", 10*time.Second, "time between two kills, in which a host has to be replaced")
	f.StringVar(&o.prices, "prices", "", "YAML file of the prices of hosts")
	o.output.flags(cmd)
	completeFlags(cmd)
	return cmd
}

// The steps of a scorecard.
const (
	beforeKills = 3 * time.Second // of the step, before the first kill
	minPause    = 2 * time.Second
)

// architecture is a stage of a scorecard: its cells, by their index, and the hosts that are killed.
type architecture struct {
	topology            sut.Topology
	peak, kills, larger int // -1 = there is none
	killed              []scorecard.Kill
}

func (o scorecardOptions) run(ctx context.Context, s streams) error {
	prices, err := readPrices(o.prices)
	if err != nil {
		return err
	}
	if o.pause < minPause {
		return exit.Usagef("--pause %v\nwant %v or more", o.pause, minPause)
	}
	o.workloads, o.slo = []string{o.workload}, results.DefaultSLO().String()
	o.connections, o.replay.Speed = cell.Connections(cell.Cores()), 1
	j, err := interruptible(ctx, o.job) // it reads files
	if err != nil {
		return err
	}
	if j.loads[0].Times != nil {
		return exit.Usagef("%s has its own times\nuse a workload without them", o.workload)
	}
	// One visit with the peak and the reference rate, without steps around the capacity.
	j.plan.Mode, j.plan.Visits, j.plan.Repeats, j.plan.Freeze, j.plan.Search.First = "scorecard", 1, 1, false, 0
	all, cells := o.plan(j)
	j.extra = map[string]any{"prices": prices, "pause": o.pause.String(), "kills": killsOf(all)}
	var stages []scorecard.Stage
	err = o.show(ctx, s, j, cells, func(measured []results.Cell) []table.Table {
		stages = conclude(all, measured, prices)
		return []table.Table{table.Scorecard(stages, prices.Currency), table.Kills(stages)}
	})
	for _, stage := range stages {
		if stage.Error != "" {
			err = errors.Join(err, fmt.Errorf("stage %s could not be measured: %s", stage.Stage, stage.Error))
		}
	}
	return err
}

// show measures cells. If all of them were measured, it prints the tables of them.
func (o runOptions) show(
	ctx context.Context, s streams, j job, cells []cell.Spec, tables func([]results.Cell) []table.Table,
) error {
	dir, run, err := o.measure(ctx, s, j, cells)
	if dir == nil {
		return err
	}
	complete := run.Complete && len(run.Cells) == len(cells)
	if complete {
		err = errors.Join(err, o.output.print(s, tables(run.Cells)...))
	}
	finish(s, dir, o.out, complete)
	return err
}

// killsOf returns what is killed at each stage, for the manifest.
func killsOf(all []architecture) map[string][]string {
	kills := map[string][]string{}
	for _, a := range all {
		for _, k := range a.killed {
			kills[string(a.topology.Stage)] = append(kills[string(a.topology.Stage)],
				fmt.Sprintf("%v %s (%s)", time.Duration(k.AtNS), k.Host, k.Role))
		}
	}
	return kills
}

// readPrices reads a file of prices; "" = the example prices.
func readPrices(name string) (scorecard.Prices, error) {
	if name == "" {
		return scorecard.ExamplePrices(), nil
	}
	text, err := os.ReadFile(name)
	if err != nil {
		return scorecard.Prices{}, exit.Usagef("--prices: %w\n"+
			"name a file that you can read; for its content see: stagebench scorecard --help", err)
	}
	prices, err := scorecard.ReadPrices(text, name)
	if err != nil {
		return prices, exit.Usage(err)
	}
	return prices, nil
}

// plan returns the stages with their cells.
func (o scorecardOptions) plan(j job) (all []architecture, cells []cell.Spec) {
	add := func(s cell.Spec) int {
		s.Load = j.loads[0]
		cells = append(cells, s)
		return len(cells) - 1
	}
	for _, t := range j.topologies {
		a := architecture{topology: t, killed: o.victims(t), larger: -1}
		fixed := &cell.Fixed{
			RPS: j.plan.ReferenceRPS, Duration: beforeKills + time.Duration(len(a.killed))*o.pause,
		}
		for _, k := range a.killed {
			fixed.Faults = append(fixed.Faults, faults.Fault{At: time.Duration(k.AtNS), Do: faults.Kill, Target: k.Host})
		}
		a.peak = add(cell.Spec{Topology: t, Variant: "peak"})
		a.kills = add(cell.Spec{Topology: t, Variant: "kills", Fixed: fixed})
		if larger, ok := withOneMore(t); ok {
			a.larger = add(cell.Spec{Topology: larger, Variant: "web.hosts=" + larger.Knobs["web.hosts"]})
		}
		all = append(all, a)
	}
	return all, cells
}

// withOneMore returns the topology with one more web host; ok is false if that is not possible: there is no balancer,
// or too little CPU.
func withOneMore(t sut.Topology) (larger sut.Topology, ok bool) {
	larger, _, err := ladder.Scale(t, "web", ladder.WebOf(t.Knobs).Hosts+1)
	return larger, err == nil && fits(larger) == nil
}

// victims returns a host of each role, in the order in which they are killed. The primary of a replicated database is
// the last one, because its death changes the roles of the others. Hosts that stand for the network are left out.
func (o scorecardOptions) victims(t sut.Topology) []scorecard.Kill {
	roles := map[string]bool{}
	var kills, primaries []scorecard.Kill
	for _, h := range t.Hosts {
		k := scorecard.Kill{Host: h.Name}
		var parts []string
		for _, n := range t.Nodes {
			if n.Host != h.Name || n.Role == sut.WAN {
				continue
			}
			k.Nodes = append(k.Nodes, n.Name)
			parts = append(parts, partOf(n))
		}
		k.Role = strings.Join(slices.Compact(parts), "+")
		if k.Nodes == nil || roles[k.Role] {
			continue
		}
		roles[k.Role] = true
		if slices.Contains(parts, "primary") {
			primaries = append(primaries, k)
		} else {
			kills = append(kills, k)
		}
	}
	kills = append(kills, primaries...)
	for i := range kills {
		kills[i].AtNS = int64(beforeKills + time.Duration(i)*o.pause)
	}
	return kills
}

// partOf returns what a node does, for people.
func partOf(n sut.Node) string {
	switch {
	case n.Replicated && len(n.Uses) == 0:
		return "primary"
	case n.Replicated:
		return "replica"
	}
	return string(n.Role)
}

// conclude returns the answers for each stage.
func conclude(all []architecture, cells []results.Cell, prices scorecard.Prices) (stages []scorecard.Stage) {
	for _, a := range all {
		m := scorecard.Measured{
			Peak: cells[a.peak], Kills: cells[a.kills], Killed: a.killed, Nodes: len(a.topology.Nodes),
			Sizes: sizesOf(a.topology),
		}
		if a.larger >= 0 {
			m.Larger = &cells[a.larger]
		}
		stages = append(stages, scorecard.Of(m, prices))
	}
	return stages
}

// sizesOf returns the sizes of all hosts in units, without those that stand for no machine.
func sizesOf(t sut.Topology) (sizes []float64) {
	for _, h := range t.Hosts {
		if h.Units > 0 {
			sizes = append(sizes, h.Units)
		}
	}
	return sizes
}
