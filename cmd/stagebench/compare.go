package main

import (
	"bytes"
	"fmt"
	"math"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/compare"
	"github.com/stagebench/stagebench/results/export"
	"github.com/stagebench/stagebench/results/foreign"
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
interval does not contain 1.

A RUN may also be a file of another tool: results of vegeta (binary, JSON or CSV), a
summary of k6 (--summary-export, or the data of handleSummary), or Go benchmark text.
Vegeta and k6 measure service times, from the sending of a request. So a comparison
with them shows service times of all runs. Benchmarks are compared as by benchstat:
medians, and the U test at the level of 0.05.`,
		Example: `  stagebench compare runs/before runs/after
  stagebench compare runs/latest other/run --format markdown
  stagebench compare before.bin after.bin               # of vegeta attack
  stagebench compare before.txt after.txt               # of go test -bench`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) < 2 {
				return exit.Usagef("%s wants at least two runs: directories, or files of other tools\n"+
					"for example: stagebench compare runs/before runs/after", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			runs, err := interruptible(cmd.Context(), func() (runs []comparedRun, err error) {
				for _, path := range args {
					run, err := readCompared(path)
					if err != nil {
						return nil, exit.Usage(err)
					}
					runs = append(runs, run)
				}
				return runs, nil
			})
			if err != nil {
				return err
			}
			if slices.ContainsFunc(runs, func(r comparedRun) bool { return r.Tool == foreign.Benchmarks }) {
				t, err := benchmarkTable(runs)
				if err != nil {
					return err
				}
				return o.print(s, t)
			}
			var all []compare.Run
			for _, r := range runs {
				all = append(all, r.Run)
			}
			return o.print(s, comparisonTables(compare.Compare(all), all)...)
		},
	}
	o.flags(cmd)
	return cmd
}

// comparedRun is an argument of compare: a run, or benchmarks.
type comparedRun struct {
	compare.Run
	series   []compare.Series
	warnings []string
}

// readCompared reads the directory of a run, or a file of another tool.
func readCompared(path string) (comparedRun, error) {
	if info, err := os.Stat(path); err != nil || info.IsDir() {
		run, manifest, err := rundir.Read(path)
		return comparedRun{Run: compare.Run{Run: run, Manifest: manifest, Name: path}}, err
	}
	file, err := os.Open(path)
	if err != nil {
		return comparedRun{}, fmt.Errorf("%w\nname a directory of a run, or a file that you can read", err)
	}
	defer func() { _ = file.Close() }() // it was only read
	read, err := foreign.Read(file)
	if err != nil {
		return comparedRun{}, fmt.Errorf("%s: %w", path, err)
	}
	return comparedRun{compare.Run{Run: read.Run, Name: path, Tool: read.Tool}, read.Series, read.Warnings}, nil
}

// benchmarkTable compares benchmarks. Runs take part with the figures that gobench writes.
func benchmarkTable(runs []comparedRun) (table.Table, error) {
	var files [][]compare.Series
	const intervals = "Intervals of the medians"
	figures := table.Table{Title: "Comparison of benchmarks", Columns: []table.Column{
		{Name: "benchmark", Row: true},
		{Name: "unit", Row: true},
		{Name: "better", Part: intervals},
		{Name: "run", Row: true},
		{Name: "samples", Align: table.Right},
		{Name: "median", Align: table.Right},
		{Name: "95 % interval", For: table.People, Align: table.Right, Part: intervals},
		{Key: "low", For: table.Machines},
		{Key: "high", For: table.Machines},
		{Name: "ratio", Align: table.Right},
		{Name: "p", Align: table.Right},
		{Name: "figure is", Key: "verdict"},
	}, Legend: []string{
		"ratio: median divided by that of " + runs[0].Name,
		"p: of the Mann-Whitney U test on unpaired samples; below 0.05 a difference is shown, " +
			"and so for one of 20 equal figures, too",
	}}
	for _, r := range runs {
		switch {
		case r.Tool == "":
			var text bytes.Buffer
			if err := export.Write(&text, export.FormatBench, r.Run.Run); err != nil {
				return figures, exit.Usagef("%s: %w\ncompare runs that have figures", r.Name, err)
			}
			read, err := foreign.Read(&text)
			if err != nil {
				return figures, fmt.Errorf("%s: %w", r.Name, err)
			}
			r.series = read.Series
		case r.Tool != foreign.Benchmarks:
			return figures, exit.Usagef("%s has results of %s, which cannot be compared with benchmarks\n"+
				"compare files of one kind", r.Name, r.Tool)
		}
		files = append(files, r.series)
		for _, w := range r.warnings {
			figures.Notes = append(figures.Notes, r.Name+": "+w)
		}
	}
	for _, row := range compare.CompareSeries(files) {
		for i, sample := range row.Samples {
			figures.Rows = append(figures.Rows, benchmarkRow(row, runs[i].Name, sample))
		}
	}
	return figures, nil
}

func benchmarkRow(row compare.SeriesRow, run string, s compare.Sample) []table.Cell {
	name, better := row.Name, map[int]string{1: "higher", -1: "lower"}[row.Better]
	if row.Package != "" {
		name = row.Package + " " + name
	}
	verdict := table.Text(string(s.Verdict))
	if s.Why != "" {
		verdict = verdict.With(s.Why)
	}
	blank := table.Blank()
	median, interval, low, high, ratio, p := blank, blank, table.Cell{}, table.Cell{}, blank, blank
	if s.Count > 0 {
		median = inUnit(s.Median)
		if !math.IsInf(s.Low, 0) && !math.IsInf(s.High, 0) {
			low, high = inUnit(s.Low), inUnit(s.High)
			interval = table.Text(low.Text + ".." + high.Text)
		}
	}
	if s.Ratio > 0 {
		ratio = ratioCell(compare.Ratio{Value: s.Ratio})
	}
	if s.Verdict != compare.Base && s.Verdict != compare.NotCompared {
		p = table.Number(s.P)
	}
	return append(texts(name, row.Unit, better, run), table.Count(int64(s.Count)), median, interval, low, high, ratio, p,
		verdict)
}

// inUnit is a cell with a value in any unit: 0.0000123 is 1.23e-05.
func inUnit(x float64) table.Cell {
	return table.Cell{Text: strconv.FormatFloat(x, 'g', 4, 64), Value: x}
}

// notComplete marks the figures of a run without its end: later visits and cells are missing.
const notComplete = "the run is not complete: it is still running, was interrupted, or ended early"

// comparisonTables returns the tables of a comparison: figures, then manifests.
func comparisonTables(c compare.Comparison, runs []compare.Run) []table.Table {
	latency, legend := "Response time at the reference rate", "failures count as infinitely slow"
	more := table.Machines // who sees the columns that runs of ours do not need: their rates are equal
	if c.Service {
		more = table.Everyone
		latency, legend = "Service time of successes", "from the sending of a request: other tools do not measure response "+
			"times, which begin when a request is due. So the time in which a request waited for a connection is missing"
	}
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
		{Name: "sent\nrps", Key: "sent_rps", For: more, Align: table.Right, Part: latency},
		{Name: "errors", Key: "errors_share", For: more, Align: table.Right, Part: latency},
		{Name: "p50\nms", Key: "p50_ns", Align: table.Right, Part: latency},
		{Name: "p50\nratio", Key: "p50_ratio", Align: table.Right, Part: latency},
		{Name: "p95\nms", Key: "p95_ns", For: more, Align: table.Right, Part: latency},
		{Name: "p95\nratio", Key: "p95_ratio", For: more, Align: table.Right, Part: latency},
		{Name: "p99\nms", Key: "p99_ns", Align: table.Right, Part: latency},
		{Name: "p99\nratio", Key: "p99_ratio", Align: table.Right, Part: latency},
	}, Legend: []string{
		"ratio: figure divided by that of " + c.Runs[0] + "; interval: 90 % interval of the capacity ratio",
	}, PartLegend: map[string][]string{latency: {legend}}}
	for _, row := range c.Rows {
		for i, cell := range row.Cells {
			figures.Rows = append(figures.Rows, comparisonRow(c, row, i, cell))
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
	if note := measuredBy(runs); note != "" {
		figures.Notes = append(figures.Notes, note)
		return []table.Table{figures}
	}
	if len(c.Differences) == 0 {
		figures.Notes = append(figures.Notes, "the manifests differ only in ids, times and command lines")
		return []table.Table{figures}
	}
	return []table.Table{figures, manifestTable(c)}
}

// manifestTable shows the differences between the manifests.
func manifestTable(c compare.Comparison) table.Table {
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
	return manifests
}

// measuredBy says which runs other tools measured; "" = none.
func measuredBy(runs []compare.Run) string {
	var parts []string
	for _, r := range runs {
		if r.Tool != "" {
			parts = append(parts, r.Name+" by "+r.Tool)
		}
	}
	if len(parts) == 0 {
		return ""
	}
	return "measured by other tools, without a manifest and without rules of validity: " + strings.Join(parts, ", ")
}

func comparisonRow(c compare.Comparison, row compare.Row, i int, cell *results.Cell) []table.Cell {
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
	name := table.Text(c.Runs[i])
	if !c.Complete[i] {
		name = name.With(notComplete)
	}
	cells := append(texts(row.Stage, row.Workload, row.Knobs), name, table.Blank(), ratioCell(ratio),
		interval, low, high, table.Count(int64(ratio.Visits)), verdict)
	if cell == nil || cell.Error != "" {
		return append(cells, slices.Repeat([]table.Cell{table.Blank()}, 9)...)
	}
	if cell.Searched() {
		cells[4] = table.Rate(cell.CapacityRPS)
	}
	sent, failed := table.Blank(), table.Blank()
	if r := cell.Reference; r != nil {
		sent, failed = table.Rate(r.SentRPS), table.Share(r.Ledger.ErrorRate())
	}
	cells = append(cells, table.Text(cell.LimitedBy), sent, failed)
	latency := c.Latency(cell)
	for _, p := range []struct {
		ns    *int64
		ratio compare.Ratio
	}{{latency.P50, row.P50[i]}, {latency.P95, row.P95[i]}, {latency.P99, row.P99[i]}} {
		value := percentileCell(p.ns)
		if !cell.Valid {
			value = value.With("the cell is not valid")
		}
		if c.Service && p.ns != nil {
			value = value.With(cell.Warnings...)
		}
		ratio := ratioCell(p.ratio)
		if c.Service && p.ratio.Value > 0 && p.ratio.Why != "" {
			ratio = ratio.With(p.ratio.Why)
		}
		cells = append(cells, value, ratio)
	}
	return cells
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
