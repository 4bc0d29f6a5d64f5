package main

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/gate"
	"github.com/stagebench/stagebench/results/table"
)

// selftestOptions are the flags of `stagebench gate selftest`.
type selftestOptions struct {
	gateOptions
	gates, measured int
	plant           float64 // percent
}

func selftestCommand(s streams) *cobra.Command {
	var o selftestOptions
	cmd := &cobra.Command{
		Use:   "selftest",
		Short: "Measure how often a gate is wrong on this machine",
		Long: `Measures this version against itself, and against itself with a slowdown of known size: web
hosts that burn more CPU time for each request (the knob web.burn). From these blocks it
draws gates at random, with replacement, and counts their verdicts: how often a gate finds
a regression where nothing has changed, and how often it finds the slowdown.

Exits with status 3 if a gate on this machine would be wrong too often: false alarms in
more than 1 % of the gates, or the slowdown found in less than 95 %.`,
		Example: `  stagebench gate selftest
  stagebench gate selftest --stage lb --blocks 100 --plant 5`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s) },
	}
	o.flags(cmd)
	cmd.Flags().IntVar(&o.gates, "gates", 59, "number of gates of each kind")
	cmd.Flags().IntVar(&o.measured, "blocks", 40, "number of blocks to measure")
	cmd.Flags().Float64Var(&o.plant, "plant", 10, "CPU time per request of the slowdown, in percent of that of the base")
	o.output.flags(cmd)
	completeFlags(cmd)
	return cmd
}

// The bounds for a gate that is good enough.
const (
	maxFalseAlarms = 0.01
	minFound       = 0.95
)

func (o selftestOptions) run(ctx context.Context, s streams) error {
	if o.measured < gate.Looks()[0].Blocks || o.gates < 1 || !(o.plant > 0 && o.plant <= 1000) {
		return exit.Usagef("--blocks %d, --gates %d, --plant %v\n"+
			"want %d blocks or more, 1 gate or more, and 0 to 1000 percent",
			o.measured, o.gates, o.plant, gate.Looks()[0].Blocks)
	}
	same := contender{kind: aTopology}
	o.base, o.head, o.timeout = "this version", "this version", time.Second
	wanted, err := o.bounded(gate.Metrics())
	if err := errors.Join(o.checkSlices(), err); err != nil {
		return err
	}
	o.wanted = wanted
	o.baseIs, o.headIs = same.as("base"), same.as("head")
	begin := time.Now()
	var metrics []gate.Metric
	var unchanged, planted []gate.Pair
	var burn time.Duration
	p, err := o.onPair(ctx, s, func(p *pair) (err error) {
		metrics, unchanged, planted, burn, err = o.measure(ctx, p)
		return err
	})
	if err != nil {
		return err
	}
	p.run.Cells, p.run.Complete = []results.Cell{p.base.Cell(), p.head.Cell()}, true
	if err := p.dir.WriteSummary(p.run); err != nil {
		return err
	}
	none, err := gate.Draw(metrics, unchanged, o.gates, true, o.seed)
	if err != nil {
		return err
	}
	slower, err := gate.Draw(metrics, planted, o.gates, false, o.seed)
	if err != nil {
		return err
	}
	tables := o.tables(metrics, unchanged, planted, burn, none, slower, time.Since(begin))
	err = o.output.print(s, tables...)
	finish(s, p.dir, o.out, true)
	alarms, found := float64(none.Regression)/float64(o.gates), float64(slower.Regression)/float64(o.gates)
	if alarms > maxFalseAlarms || found < minFound {
		err = errors.Join(err, exit.Invalidf("a gate on this machine would be wrong too often: %d false alarms, and "+
			"%d of %d slowdowns found\nuse longer slices, or a machine with less noise",
			none.Regression, slower.Regression, o.gates))
	}
	return err
}

// as returns the contender as one side.
func (c contender) as(side string) contender {
	c.side = side
	return c
}

// measure measures blocks of three slices: the base, the same again, and the base with the slowdown.
func (o selftestOptions) measure(ctx context.Context, p *pair) (
	metrics []gate.Metric, unchanged, planted []gate.Pair, burn time.Duration, err error,
) {
	first, err := p.pilot(ctx, o.wanted)
	if err != nil {
		return nil, nil, nil, 0, err
	}
	perRequest, known := gate.CPU(first.slice)
	if !known {
		return nil, nil, nil, 0, errors.New("the CPU time of the nodes is not known\nsee: stagebench doctor")
	}
	burn = time.Duration(perRequest * o.plant / 100).Round(time.Microsecond)
	slowed := contender{side: "slowed", kind: aTopology, knobs: []string{"web.burn=" + burn.String()}}
	slow, err := p.side(slowed)
	if err != nil {
		return nil, nil, nil, 0, err
	}
	each := first.each * 3 / 2
	p.progress.Note(fmt.Sprintf("all at %.0f/s, the slowdown burns %v per request; %d blocks of three slices take "+
		"about %v",
		first.rate, burn, o.measured, time.Duration(o.measured)*each))
	for n := range o.measured {
		var slices [3]gate.Slice
		for i, k := range rand.New(rand.NewPCG(o.seed, uint64(n))).Perm(3) {
			side := []*cell.Slices{p.base, p.head, slow}[k]
			p.progress.Visit(fmt.Sprintf("block %d: %s", n+1, []string{"base", "the same", "slowed"}[k]), 3*n+i, 3*o.measured,
				time.Duration(o.measured-n)*each-time.Duration(i)*each/3)
			if slices[k], err = side.Measure(ctx, n+1, first.rate, first.burst); err != nil {
				return nil, nil, nil, 0, err
			}
		}
		unchanged = append(unchanged, gate.Pair{Base: slices[0], Head: slices[1]})
		planted = append(planted, gate.Pair{Base: slices[0], Head: slices[2]})
	}
	return first.metrics, unchanged, planted, burn, nil
}

// tables returns the verdicts, and the noise of the metrics.
func (o selftestOptions) tables(
	metrics []gate.Metric, unchanged, planted []gate.Pair, burn time.Duration, none, slower gate.Tally, took time.Duration,
) []table.Table {
	right := func(name string) table.Column { return table.Column{Name: name, Align: table.Right} }
	verdicts := table.Table{
		Title: "Gates on this machine",
		Columns: []table.Column{
			{Name: "change", Row: true},
			right("gates"), right("regression"), right("pass"), right("inconclusive"),
			right("invalid"), right("mean blocks"),
		},
		Legend: []string{fmt.Sprintf("drawn from %d blocks that were measured in %v; a gate decides after %d to %d blocks",
			o.measured, took.Round(time.Second), gate.Looks()[0].Blocks, gate.MaxBlocks())},
	}
	for _, row := range []struct {
		change string
		t      gate.Tally
	}{{"none", none}, {fmt.Sprintf("+%v %% CPU per request (%v)", o.plant, burn), slower}} {
		n := func(count int) table.Cell { return table.Count(int64(count)) }
		verdicts.Rows = append(verdicts.Rows, []table.Cell{
			table.Text(row.change), n(row.t.Gates), n(row.t.Regression), n(row.t.Pass), n(row.t.Inconclusive), n(row.t.Invalid),
			table.Number(row.t.Blocks),
		})
	}
	noise := table.Table{
		Title: "Noise of a block",
		Columns: []table.Column{
			{Name: "metric", Row: true}, right("no change: mean"), right("no change: deviation"), right("slowed: mean"),
		},
		Legend: []string{"mean: of head against base; deviation: standard deviation of one block"},
	}
	for _, m := range metrics {
		d := m.Described()
		cell := func(x float64) table.Cell {
			c := table.Number(x)
			c.Text = d.Text(x)
			return c
		}
		mean, deviation := gate.Spread(m, unchanged)
		slowed, _ := gate.Spread(m, planted)
		noise.Rows = append(noise.Rows, []table.Cell{table.Text(m.Name), cell(mean), cell(deviation), cell(slowed)})
	}
	return []table.Table{verdicts, noise}
}
