package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math"
	"os/exec"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/results/trend"
	"github.com/stagebench/stagebench/results/trend/lines"
)

// historyFile is the file of a history without --file.
const historyFile = "stagebench-history.jsonl"

func historyCommand(s streams) *cobra.Command {
	var file string
	show := historyShowCommand(s, &file)
	cmd := &cobra.Command{
		Use:   "history",
		Short: "Keep the figures of runs in a file, and show since when they are better or worse",
		Long: `Keeps one line of figures for each run in a file of JSON lines, and shows the series of
each figure with its change points: the runs since which it has another level.

  stagebench run --quick && stagebench history add runs/latest
  git add ` + historyFile + ` && git commit -m 'Measured'
  stagebench history

Let git keep the lines of both sides of a merge. Their order does not matter:
  echo '` + historyFile + ` merge=union' >> .gitattributes

Series are cut where the machine, its kernel, or the plan, engines and knobs of a cell
change: no change point lies there. So keep one file for each kind of run, and for each
kind of machine. Values of invalid cells are shown and count for nothing.

A change needs three to five runs on the new level to be found, and about ten before it. A
stable series has a change point in less than one of 200 cases.`,
		Args: show.Args, Example: show.Example, RunE: show.RunE,
	}
	cmd.PersistentFlags().StringVarP(&file, "file", "f", historyFile, "file of the history")
	cmd.Flags().AddFlagSet(show.Flags())
	cmd.PreRunE = show.PreRunE
	cmd.AddCommand(historyAddCommand(s, &file), show)
	return cmd
}

func historyAddCommand(s streams, file *string) *cobra.Command {
	var commit string
	cmd := &cobra.Command{
		Use:   "add RUN",
		Short: "Add the figures of a run to the history",
		Long: `Adds a line with the figures of a complete run to the history. The commit is that of the
git repository in the working directory. A run that the history has is not added again.`,
		Example: "  stagebench history add runs/latest\n" +
			"  stagebench history add runs/latest --commit v1.4.0 --file bench/history.jsonl",
		Args: oneArg("the directory of a run"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("commit") && !regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._/+-]{0,99}$`).MatchString(commit) {
				return exit.Usagef("--commit %q\nwant the id of a commit, or a name of letters, digits and . _ / + -", commit)
			}
			return addToHistory(cmd.Context(), s, args[0], *file, commit)
		},
	}
	cmd.Flags().StringVar(&commit, "commit", "", "commit that was measured (default: HEAD of git in this directory)")
	return cmd
}

// addToHistory adds the run in a directory to a file.
func addToHistory(ctx context.Context, s streams, dir, file, commit string) error {
	record, err := interruptible(ctx, func() (trend.Record, error) {
		run, manifest, err := rundir.Read(dir)
		switch {
		case err != nil:
			return trend.Record{}, exit.Usage(err)
		case !run.Complete:
			return trend.Record{}, exit.Usagef("%s: %s\nadd a complete run", dir, notComplete)
		case len(run.Cells) == 0:
			return trend.Record{}, exit.Usagef("%s has no cell\nadd a run that measured something", dir)
		}
		return trend.Of(run, manifest), nil
	})
	if err != nil {
		return err
	}
	if record.Commit = commit; commit == "" {
		head, err := exec.CommandContext(ctx, "git", "rev-parse", "--verify", "HEAD").Output()
		if record.Commit = strings.TrimSpace(string(head)); err != nil {
			record.Commit = ""
			_, _ = fmt.Fprintln(s.err, "the commit is unknown, because git knows none here: name it with --commit")
		}
	}
	added, err := lines.Add(ctx, file, record)
	switch {
	case err != nil:
		return err
	case added.Known > 0 && commit != "" && added.Old.Commit != commit:
		return fmt.Errorf("%s:%d has run %s with commit %q, not %q\nremove this line to add the run again",
			file, added.Known, record.Run, added.Old.Commit, commit)
	case added.Known > 0:
		_, err = fmt.Fprintf(s.err, "%s:%d already has run %s: nothing was added\n", file, added.Known, record.Run)
	default:
		_, err = fmt.Fprintf(s.err, "added run %s of commit %s to %s; runs in it: %d\n",
			record.Run, cmp.Or(record.Commit, "unknown"), file, added.Runs)
	}
	return err
}

// historyOptions are the flags of `stagebench history show`.
type historyOptions struct {
	output         outputFlags
	metrics, cells []string
	since          string
	fail           bool
}

func historyShowCommand(s streams, file *string) *cobra.Command {
	var o historyOptions
	var names []string
	for _, m := range trend.Metrics() {
		names = append(names, m.Name)
	}
	cmd := &cobra.Command{
		Use:   "show",
		Short: "Show the history (the default)",
		Example: `  stagebench history
  stagebench history --metric p99,capacity --cell lb/read-heavy
  stagebench history --fail-on-regression       # in CI: exit status 4 if a figure is worse
  stagebench history show --format markdown`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return exit.Usagef("%s has no command %q%s\nwant add or show; see: stagebench history --help",
					cmd.CommandPath(), args[0], didYouMean("", args[0], []string{"add", "show"}))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			for _, name := range o.metrics {
				if !slices.Contains(names, name) {
					return exit.Usagef("--metric %q%s\nwant one of %s", name, didYouMean("", name, names),
						strings.Join(names, ", "))
				}
			}
			records, err := interruptible(cmd.Context(), func() ([]trend.Record, error) { return lines.Read(*file) })
			if errors.Is(err, fs.ErrNotExist) {
				return exit.Usage(err)
			}
			if err != nil {
				return err
			}
			return o.show(s, *file, records)
		},
	}
	f := cmd.Flags()
	f.StringSliceVar(&o.metrics, "metric", nil, "only these metrics: "+strings.Join(names, ", "))
	f.StringSliceVar(&o.cells, "cell", nil, "only these cells, such as lb/read-heavy")
	f.StringVar(&o.since, "since", "",
		"only runs since this commit or run; so a change at this one is not reported")
	f.BoolVar(&o.fail, "fail-on-regression", false, "exit with status 4 if the newest level of any figure is worse "+
		"than the one before")
	must(cmd.RegisterFlagCompletionFunc("metric", listCompletion(names, cobra.ShellCompDirectiveNoFileComp)))
	o.output.flags(cmd)
	return cmd
}

// show prints the history.
func (o historyOptions) show(s streams, file string, records []trend.Record) error {
	slices.SortStableFunc(records, func(a, b trend.Record) int { return a.Time.Compare(b.Time) })
	if o.since != "" {
		first := slices.IndexFunc(records, func(r trend.Record) bool {
			return r.Run == o.since || strings.HasPrefix(r.Commit, o.since)
		})
		if first < 0 {
			return exit.Usagef("--since %s: %s has no such commit and no such run\nsee its lines: "+
				"stagebench history show", o.since, file)
		}
		records = records[first:]
	}
	if len(records) == 0 {
		return exit.Usagef("%s has no run\nadd one: stagebench history add runs/latest", file)
	}
	all := trend.SeriesOf(records)
	var cells []string
	for _, line := range all {
		cells = append(cells, line.Cell)
	}
	for _, name := range o.cells {
		if !slices.Contains(cells, name) {
			return exit.Usagef("--cell %s: %s has no figure of it%s\nwant one of %s", name, file,
				didYouMean("", name, cells), strings.Join(slices.Compact(cells), ", "))
		}
	}
	all = slices.DeleteFunc(all, func(line trend.Series) bool {
		return len(o.cells) > 0 && !slices.Contains(o.cells, line.Cell) ||
			len(o.metrics) > 0 && !slices.Contains(o.metrics, line.Metric.Name)
	})
	if err := o.output.print(s, o.tables(all, records)...); err != nil || !o.fail {
		return err
	}
	return o.regression(all, records)
}

// tables returns the series, and if there are any: change points, cuts, and cells that do not count.
func (o historyOptions) tables(all []trend.Series, records []trend.Record) []table.Table {
	t := table.Table{Title: "History", Columns: []table.Column{
		{Name: "cell", Row: true},
		{Name: "metric", Row: true},
		{Key: "unit", For: table.Machines},
		{Name: "better", For: table.Machines},
		{Name: "latest", Align: table.Right},
		{Name: "level", Align: table.Right},
		{Name: "before", For: table.Machines},
		{Name: "change", Align: table.Right},
		{Name: "is"},
		{Name: "since"},
		{Name: "runs", Align: table.Right},
		{Name: "trend", For: table.People},
	}, Legend: []string{
		"level: median of the runs since the last change point; change: against the level before it; runs: those that count",
		"trend: of the newest runs, from 0 (lowest) to 9 (highest); x: not valid; ':' change point; '/' cut",
		"latencies, errors and CPU time per request are those at the reference rate, or at the only rate",
	}}
	for _, line := range all {
		t.Rows = append(t.Rows, historyRow(line, records[len(records)-1].Run))
	}
	tables := []table.Table{t}
	for _, more := range []table.Table{changesTable(all), cutsTable(all), o.ignoredTable(records)} {
		if len(more.Rows) > 0 {
			tables = append(tables, more)
		}
	}
	return tables
}

// metricCells returns the cells that identify a series.
func metricCells(line trend.Series) []table.Cell {
	m := line.Metric
	label := map[string]string{trend.RPS: " rps", trend.NS: " ms"}[m.Unit]
	return []table.Cell{table.Text(line.Cell), {Text: m.Name + label, Value: m.Name}}
}

func historyRow(line trend.Series, newest string) []table.Cell {
	m := line.Metric
	better := map[bool]string{false: "lower", true: "higher"}[m.Higher]
	row := append(metricCells(line), table.Text(m.Unit), table.Text(better))
	last, valid := line.Latest()
	latest := table.Blank()
	if valid != nil {
		latest = valueCell(m, valid.Value)
	}
	switch {
	case last.Run != newest:
		latest = latest.With("not measured in the newest run, " + newest)
	case !last.Valid:
		latest = latest.With("the newest run is not valid: " + last.Why)
	}
	level, before := line.Last()
	part := line.Parts[len(line.Parts)-1]
	runs := 0
	for _, l := range part.Levels {
		runs += l.Runs
	}
	count := table.Count(int64(runs))
	if part.Why != "" {
		count = count.With("cut before run " + part.Points[0].Run + ": " + part.Why)
	}
	switch {
	case level == nil:
		row = append(row, latest, table.Blank(), table.Blank(), table.Blank(), table.Cell{}, table.Cell{})
	case before == nil:
		row = append(row, latest, valueCell(m, level.Median), table.Blank(), table.Blank(), table.Cell{}, table.Cell{})
	default:
		row = append(row, latest, valueCell(m, level.Median), valueCell(m, before.Median),
			changeCell(m, *before, *level), judgement(m, *before, *level), commitCell(*level.From.Record))
	}
	return append(row, count, table.Text(sparkline(line)))
}

func valueCell(m trend.Metric, value float64) table.Cell {
	switch m.Unit {
	case trend.NS:
		return table.Nanoseconds(int64(math.Round(value)))
	case trend.Share:
		return table.Share(value)
	}
	return table.Rate(value)
}

func changeCell(m trend.Metric, before, level trend.Level) table.Cell {
	cell := table.Cell{Text: m.Change(before.Median, level.Median)}
	switch {
	case m.Unit == trend.Share:
		cell.Value = level.Median - before.Median
	case before.Median > 0:
		cell.Value = level.Median/before.Median - 1
	}
	return cell
}

func judgement(m trend.Metric, before, level trend.Level) table.Cell {
	switch {
	case m.Worse(level.Median, before.Median):
		return table.Cell{Text: "WORSE", Value: "worse", Bad: true}
	case m.Worse(before.Median, level.Median):
		return table.Text("better")
	}
	return table.Text("other spread")
}

// commitCell is a cell with the commit of a run, or its id if the commit is unknown.
func commitCell(r trend.Record) table.Cell {
	return table.Cell{Text: shortCommit(r), Value: r.Commit}
}

// shortCommit returns the first characters of the commit, or else the id of the run.
func shortCommit(r trend.Record) string {
	const short = 10
	switch {
	case r.Commit == "":
		return r.Run
	case regexp.MustCompile(`^[0-9a-f]{40,64}$`).MatchString(r.Commit):
		return r.Commit[:short]
	}
	return r.Commit
}

// sparkline returns the newest values as digits.
func sparkline(line trend.Series) string {
	const most = 16
	low, high := math.Inf(1), math.Inf(-1)
	var points []trend.Point
	before := map[string]string{} // the sign before the value of a run
	for _, part := range line.Parts {
		if part.Why != "" {
			before[part.Points[0].Run] = "/"
		}
		for _, level := range part.Levels {
			if level.P > 0 {
				before[level.From.Run] = ":"
			}
		}
		points = append(points, part.Points...)
	}
	points = points[max(0, len(points)-most):]
	for _, p := range points {
		if p.Valid {
			low, high = min(low, p.Value), max(high, p.Value)
		}
	}
	var text strings.Builder
	for i, p := range points {
		if i > 0 {
			text.WriteString(before[p.Run])
		}
		switch {
		case !p.Valid:
			text.WriteByte('x')
		case high == low:
			text.WriteByte('5')
		default:
			text.WriteString(strconv.Itoa(int(math.Round(9 * (p.Value - low) / (high - low)))))
		}
	}
	return text.String()
}

// runColumns are the columns of runCells.
func runColumns() []table.Column {
	return []table.Column{
		{Name: "commit"}, {Key: "run", For: table.Machines}, {Name: "run began", Key: "time"},
	}
}

// runCells are the cells that name a run.
func runCells(r trend.Record) []table.Cell {
	when := table.Cell{Text: r.Time.UTC().Format("2006-01-02 15:04"), Value: r.Time.UTC().Format(time.RFC3339)}
	return []table.Cell{commitCell(r), table.Text(r.Run), when}
}

// changesTable has all change points.
func changesTable(all []trend.Series) table.Table {
	t := table.Table{Title: "Change points", Columns: slices.Concat([]table.Column{
		{Name: "cell", Row: true}, {Name: "metric", Row: true},
	}, runColumns(), []table.Column{
		{Name: "before", Align: table.Right},
		{Name: "after", Align: table.Right},
		{Name: "change", Align: table.Right},
		{Name: "is"},
		{Name: "p", Align: table.Right},
	}), Legend: []string{
		"commit and begin of the first run on the new level; p: probability of so large a difference if nothing has changed",
	}}
	for _, line := range all {
		for _, part := range line.Parts {
			for i, level := range part.Levels {
				if i == 0 {
					continue
				}
				before := part.Levels[i-1]
				p := table.Cell{Text: strconv.FormatFloat(level.P, 'f', 4, 64), Value: level.P}
				t.Rows = append(t.Rows, slices.Concat(metricCells(line), runCells(*level.From.Record), []table.Cell{
					valueCell(line.Metric, before.Median), valueCell(line.Metric, level.Median),
					changeCell(line.Metric, before, level), judgement(line.Metric, before, level), p,
				}))
			}
		}
	}
	return t
}

// remark is what is said about a cell of a run.
type remark struct {
	record     trend.Record
	cell, text string
}

// cutsTable has the runs at which series are cut.
func cutsTable(all []trend.Series) table.Table {
	var remarks []remark
	for _, line := range all {
		for _, part := range line.Parts {
			if part.Why != "" {
				remarks = append(remarks, remark{*part.Points[0].Record, line.Cell, part.Why})
			}
		}
	}
	return remarksTable("Where series are cut", "what changed", remarks)
}

// ignoredTable has the runs with cells that are not valid.
func (o historyOptions) ignoredTable(records []trend.Record) table.Table {
	var remarks []remark
	for _, r := range records {
		for _, c := range r.Cells {
			if !c.Valid && (len(o.cells) == 0 || slices.Contains(o.cells, c.Name())) {
				remarks = append(remarks, remark{r, c.Name(), cmp.Or(c.Invalid, "unknown")})
			}
		}
	}
	return remarksTable("Cells that are not valid: they count for no level", "why", remarks)
}

// remarksTable has a row for each run and each text, with the cells.
func remarksTable(title, column string, remarks []remark) table.Table {
	type key struct{ run, text string }
	var keys []key
	first, cells := map[key]trend.Record{}, map[key][]string{}
	for _, r := range remarks {
		k := key{r.record.Run, r.text}
		if _, known := first[k]; !known {
			first[k], keys = r.record, append(keys, k)
		}
		if !slices.Contains(cells[k], r.cell) { // a cell has several metrics
			cells[k] = append(cells[k], r.cell)
		}
	}
	t := table.Table{Title: title, Columns: append(runColumns(), columns("cells", column)...)}
	for _, k := range keys {
		t.Rows = append(t.Rows, append(runCells(first[k]), texts(strings.Join(cells[k], " "), k.text)...))
	}
	return t
}
