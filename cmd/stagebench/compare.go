package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/compare"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/results/table"
)

func compareCommand(s streams) *cobra.Command {
	var o outputFlags
	cmd := &cobra.Command{
		Use:   "compare RUN RUN...",
		Short: "Compare the figures of runs, with a verdict on each difference",
		Long: `Prints the figures of two or more runs cell by cell, as ratios to the first run,
and the differences between their manifests. The ratio of two capacities has a 90 %
interval. It is wide for a run with --quick, which visits each cell only once.
A difference is shown only between valid cells of several visits, and only if the
interval does not contain 1.`,
		Example: `  stagebench compare runs/before runs/after
  stagebench compare runs/latest other/run --format markdown`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return exit.Usagef("%s wants at least two directories of runs\n"+
					"for example: stagebench compare runs/before runs/after", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			runs, err := interruptible(cmd.Context(), func() (runs []compare.Run, err error) {
				for _, path := range args {
					run, manifest, err := rundir.Read(path)
					if err != nil {
						return nil, exit.Usage(err)
					}
					runs = append(runs, compare.Run{Run: run, Manifest: manifest, Name: path})
				}
				return runs, nil
			})
			if err != nil {
				return err
			}
			return o.print(s, comparisonTables(compare.Compare(runs))...)
		},
	}
	o.flags(cmd)
	return cmd
}

// notComplete marks the figures of a run without its end: later visits and cells are missing.
const notComplete = "the run is not complete: it is still running, was interrupted, or ended early"

// comparisonTables returns the tables of a comparison: figures, then manifests.
func comparisonTables(c compare.Comparison) []table.Table {
	const latency = "Response time at the reference rate"
	figures := table.Table{Title: "Comparison", Columns: []table.Column{
		{Name: "stage", Row: true},
		{Name: "workload", Row: true},
		{Name: "knobs", Row: true},
		{Name: "run", Row: true},
		{Name: "capacity\nrps", Key: "capacity_rps", Align: table.Right},
		{Name: "ratio", Key: "capacity_ratio", Align: table.Right},
		{Name: "interval", For: table.People, Align: table.Right},
		{Key: "capacity_ratio_low", For: table.Machines},
		{Key: "capacity_ratio_high", For: table.Machines},
		{Key: "visits", For: table.Machines},
		{Name: "capacity is", Key: "verdict"},
		{Name: "limited by", Key: "limited_by"},
		{Name: "p50 ms", Key: "p50_ns", Align: table.Right, Part: latency},
		{Name: "p50 ratio", Key: "p50_ratio", Align: table.Right, Part: latency},
		{Name: "p99 ms", Key: "p99_ns", Align: table.Right, Part: latency},
		{Name: "p99 ratio", Key: "p99_ratio", Align: table.Right, Part: latency},
	}, Legend: []string{
		"ratio: figure divided by that of " + c.Runs[0] + "; interval: 90 % interval of the capacity ratio",
	}, PartLegend: map[string][]string{latency: {"failures count as infinitely slow"}}}
	for _, row := range c.Rows {
		for i, cell := range row.Cells {
			figures.Rows = append(figures.Rows, comparisonRow(row, c.Runs[i], c.Complete[i], i, cell))
		}
	}
	for i, name := range c.Runs {
		if !c.Complete[i] && len(c.Rows) == 0 {
			figures.Notes = append(figures.Notes, name+": "+notComplete)
		}
		if slices.ContainsFunc(c.Rows, func(r compare.Row) bool {
			return r.Cells[i] != nil && r.Cells[i].Measured() && !r.Cells[i].Isolated()
		}) {
			figures.Notes = append(figures.Notes, "hosts: not isolated in "+name)
		}
	}
	if len(c.Differences) == 0 {
		figures.Notes = append(figures.Notes, "the manifests differ only in ids, times and command lines")
		return []table.Table{figures}
	}
	manifests := table.Table{
		Title:   "Differences between the manifests",
		Columns: columns("field", "run", "value", "comparable"),
	}
	for _, d := range c.Differences {
		comparable := table.YesNo(true)
		if d.Breaks {
			comparable = table.YesNo(false).With("figures of runs that differ in " + d.What + " cannot be compared")
		}
		for i, value := range d.Values {
			manifests.Rows = append(manifests.Rows, append(texts(d.What, c.Runs[i], shortened(value)), comparable))
			comparable.Notes = nil // one note per difference
		}
	}
	return []table.Table{figures, manifests}
}

func comparisonRow(row compare.Row, run string, complete bool, i int, cell *results.Cell) []table.Cell {
	ratio := row.Capacity[i]
	verdict := table.Text(string(ratio.Verdict))
	if ratio.Why != "" {
		verdict = verdict.With(ratio.Why)
	}
	var interval, low, high table.Cell
	if ratio.Low > 0 || ratio.High > 0 {
		low, high = table.Number(ratio.Low), table.Number(ratio.High)
		interval = table.Text(low.Text + ".." + high.Text)
	}
	name := table.Text(run)
	if !complete {
		name = name.With(notComplete)
	}
	cells := append(texts(row.Stage, row.Workload, row.Knobs), name, table.Blank(), ratioCell(ratio),
		interval, low, high, table.Count(int64(ratio.Visits)), verdict)
	if cell == nil || cell.Error != "" {
		return append(cells, slices.Repeat([]table.Cell{table.Blank()}, 5)...)
	}
	if cell.Searched() {
		cells[4] = table.Rate(cell.CapacityRPS)
	}
	p50, p99 := table.Blank(), table.Blank()
	if r := cell.Reference; r != nil {
		p50, p99 = percentileCell(r.ResponseAll.P50), percentileCell(r.ResponseAll.P99)
	}
	if !cell.Valid {
		const doubt = "the cell is not valid"
		p50, p99 = p50.With(doubt), p99.With(doubt)
	}
	return append(cells, table.Text(cell.LimitedBy), p50, ratioCell(row.P50[i]), p99, ratioCell(row.P99[i]))
}

func ratioCell(r compare.Ratio) table.Cell {
	if r.Value == 0 {
		return table.Blank()
	}
	cell := table.Number(r.Value)
	cell.Text = "x" + cell.Text
	return cell
}

func percentileCell(ns *int64) table.Cell {
	if ns == nil {
		return table.Blank()
	}
	return table.Nanoseconds(*ns)
}

// shortened returns the value on one line, cut to a length that fits into a table.
func shortened(value string) string {
	const limit = 60
	value = strings.ReplaceAll(value, "\n", " ")
	if len(value) > limit {
		return fmt.Sprintf("%s... (%d bytes)", value[:limit], len(value))
	}
	return value
}
