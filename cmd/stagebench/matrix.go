package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/cmd/internal/matrix"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/live"
	"github.com/stagebench/stagebench/results/pivot"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
)

// matrixOptions are the flags of `stagebench matrix`.
type matrixOptions struct {
	file                                   string
	out                                    string
	question                               matrix.Question
	quick, strict, verbose, dryRun, schema bool
	allow                                  []string
	identity                               load.Identity
	output                                 outputFlags
}

func matrixCommand(s streams) *cobra.Command {
	var o matrixOptions
	cmd := &cobra.Command{
		Use:   "matrix FILE.yaml",
		Short: "Measure all combinations of stages, workloads, engines, knobs and rates",
		Long: `Measures a cell for each combination of values in a file, several times each, and
prints a figure by any two axes:

  stages: [lb, cache]                 # see: stagebench list stages
  workloads: [read-heavy, shop.yaml]
  engines: [embedded, native]
  knobs: {web.hosts: [2, 4]}          # any number of knobs
  rates: [search, 100]                # requests/s; search: the capacity
  repeats: 5
  exclude: [{stage: cache, web.hosts: 4}]
  include: [{stage: lb, web.hosts: 8}]
  tables: [{rows: stage, columns: web.hosts, figure: capacity}]

Further keys are set (knobs of all cells), seed, data, slo, quick, connections,
reference and duration (of the step at a fixed rate). Instead of stages, a file can
have services of yours. Knobs are then environment variables of the commands:

  targets:
    - {name: old, url: http://127.0.0.1:8080/, up: ./old $WORKERS, down: ./clean-up}
    - {name: new, url: http://127.0.0.1:8081/, up: ./new $WORKERS}
  knobs: {WORKERS: [2, 4]}
  workloads: [shop.yaml]              # default: requests of the URL

up runs before each repeat, and down after it, also after errors and signals. up may
stay in the foreground. Both run in the directory of the file. See also --schema.

Each repeat has new processes. A pass measures each cell once, in a random order, and
the next pass in the reverse order. Each repeat is stored when it is complete: after
an interruption of any kind, the same command with --out DIR measures only the others.`,
		Example: `  stagebench matrix caches.yaml --dry-run
  stagebench matrix caches.yaml --out runs/caches
  stagebench matrix caches.yaml --out runs/caches --rows stage --columns cache.engine --figure p99`,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 && !o.schema {
				return oneArg("a matrix file")(cmd, args)
			}
			o.file = strings.Join(args, "")
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.out, "out", "o", "", "directory of the run (default runs/ID), also of an unfinished one")
	f.StringVar(&o.question.Rows, "rows", "", "axis of the rows of the table (default: the first that varies)")
	f.StringVar(&o.question.Columns, "columns", "", "axis of its columns (default: the second that varies)")
	f.StringVar(&o.question.Figure, "figure", "", "figure of the table: "+strings.Join(pivot.Names(), ", "))
	f.BoolVar(&o.quick, "quick", false, "coarse results with short steps, as with quick: true in the file")
	f.BoolVar(&o.dryRun, "dry-run", false, "print the measurements in their order, with durations, and measure nothing")
	f.BoolVar(&o.schema, "schema", false, "print the JSON Schema of the file")
	f.BoolVar(&o.strict, "strict", false, "exit with status 3 if a cell is invalid")
	f.BoolVarP(&o.verbose, "verbose", "v", false, "print each step")
	f.StringSliceVar(&o.allow, "allow-host", nil, "allow load to this host outside the loopback network")
	identityFlags(cmd, &o.identity)
	o.output.runFlags(cmd)
	figures := cobra.FixedCompletions(pivot.Names(), cobra.ShellCompDirectiveNoFileComp)
	must(cmd.RegisterFlagCompletionFunc("figure", figures))
	return cmd
}

func (o matrixOptions) run(ctx context.Context, s streams) error {
	if o.schema {
		encoder := json.NewEncoder(s.out)
		encoder.SetIndent("", "  ")
		encoder.SetEscapeHTML(false)
		return encoder.Encode(matrix.Schema())
	}
	j, err := interruptible(ctx, func() (*matrixJob, error) { return o.job(ctx) }) // it reads files
	if err != nil {
		return err
	}
	if o.dryRun {
		return o.printOrder(s, j)
	}
	if err := missingEngines(j.topologies()); err != nil {
		return err
	}
	m, err := newManifest(s, j.file.Seed, j.file.Data, j.config())
	if err != nil {
		return err
	}
	path := o.out
	if path == "" {
		path = rundir.DefaultPath(m.Run)
	}
	unlock, err := rundir.Lock(path)
	if err != nil {
		return exit.Usage(err)
	}
	defer func() { _ = unlock() }() // it ends with the process at the latest
	j.dir, j.manifest, err = j.begin(path, m)
	if err != nil {
		return err
	}
	run, err := o.measure(ctx, s, j)
	err = errors.Join(err, o.output.runAs(s, run, j.tables(run)...))
	finish(s, j.dir, o.out, run.Complete)
	if err != nil || !run.Complete {
		_, _ = fmt.Fprintf(s.err, "To measure what is missing: stagebench matrix %s --out %s\n", o.file, path)
		return err
	}
	return verdict(s, j.dir, run, o.strict)
}

// begin makes the directory of a run, or opens that of an unfinished one with the same cells.
func (j *matrixJob) begin(path string, m results.Manifest) (*rundir.Dir, results.Manifest, error) {
	dir, old, err := rundir.Reopen(path)
	switch {
	case err != nil:
		return nil, m, exit.Usage(err)
	case dir == nil:
		dir, err = rundir.Create(path, m)
		return dir, m, err
	case old.Config[digestKey] == nil:
		return nil, m, exit.Usagef("%s holds a run of another command\nchoose another directory with --out DIR", path)
	case old.Config[digestKey] != m.Config[digestKey]:
		return nil, m, exit.Usagef("%s holds a matrix of other cells or other settings, or of a machine with other cores\n"+
			"choose another directory with --out DIR, or use the file that this run was started with", path)
	}
	dir.RemoveTemporary()
	if j.complete(dir) { // it is only looked at
		return dir, old, nil
	}
	resumed, _ := old.Config[resumedKey].([]any)
	old.Config[resumedKey] = append(resumed, m.Started.Format(time.RFC3339))
	for what, differs := range map[string]bool{
		"another binary": old.BinarySHA != m.BinarySHA, "another kernel": old.Kernel != m.Kernel,
		"another CPU": old.CPUModel != m.CPUModel,
	} {
		if text := "some repeats were measured with " + what; differs && !slices.Contains(old.Warnings, text) {
			old.Warnings = append(old.Warnings, text)
		}
	}
	return dir, old, dir.WriteManifest(old)
}

// complete reports whether a directory has all repeats.
func (j *matrixJob) complete(dir *rundir.Dir) bool {
	return !slices.ContainsFunc(j.order, func(u matrix.Unit) bool {
		return !dir.HasRepeat(cell.RepeatName(j.specs[u.Cell], u.Repeat))
	})
}

// Keys of the manifest's configuration.
const (
	digestKey  = "matrix_digest"
	resumedKey = "resumed"
)

// measure measures the repeats that are missing. The run has what was measured, also with an error.
func (o matrixOptions) measure(ctx context.Context, s streams, j *matrixJob) (run results.Run, err error) {
	s.sendsLoad()
	progress := live.New(s.err, s.terminal, o.verbose)
	defer progress.Done()
	log := slog.New(slog.NewTextHandler(progress, &slog.HandlerOptions{Level: slog.LevelWarn}))
	up, err := newLauncher(j.data, log, progress.Note)
	if err != nil {
		return run, err
	}
	defer func() { err = errors.Join(err, up.Budgets.Close()) }()
	bench := &cell.Bench{
		Driver: vegeta.Driver{}, Plan: j.plan, SLO: j.slo, Seed: j.file.Seed, Connections: j.connections(),
		Progress: progress, Log: s.log, Forecast: j.forecast(), Run: j.dir, Up: up.up,
	}
	m := &j.manifest
	m.Budgets, m.UnitCPU, m.Reserve = up.Budgets.Describe(), cell.Unit(cell.Cores()), cell.Reserve(cell.Cores())
	m.Priority, _ = cell.DriverPriority(up.Budgets.Isolated())
	run = results.Run{Schema: results.Schema, Run: m.Run, Data: j.data.String(), Warnings: m.Warnings}
	missing, err := j.join(bench)
	if err != nil {
		return run, err
	}
	run.Cells = cell.Conclude(j.joined)
	progress.Note(j.announcement(missing, bench.Forecast))
	if len(missing) > 0 {
		patience := maxUnquiet
		if j.file.Quick {
			patience = quickUnquiet
		}
		if err := awaitQuiet(ctx, patience, m, j.dir, progress); err != nil {
			return run, err
		}
		run.Warnings = m.Warnings
		if err := errors.Join(j.dir.WriteManifest(*m), j.measure(ctx, bench, missing, &run, progress)); err != nil {
			return run, err
		}
		if err := bench.Forecast.Save(); err != nil {
			progress.Note("the durations of this run were not kept for later estimates: " + err.Error())
		}
	}
	run.Complete = true
	return run, j.dir.WriteSummary(run)
}

// announcement says what will be measured, and how long it takes.
func (j *matrixJob) announcement(missing []matrix.Unit, f *cell.Forecast) string {
	text := fmt.Sprintf("%d cells x %d repeats", len(j.specs), j.file.Repeats)
	if done := len(j.order) - len(missing); done > 0 {
		text += fmt.Sprintf(", of which %d of %d are done", done, len(j.order))
	}
	return fmt.Sprintf("%s, about %v, in %s", text, j.expected(missing, f).Round(time.Second), j.dir.Path())
}

// expected returns the expected duration of some units.
func (j *matrixJob) expected(units []matrix.Unit, f *cell.Forecast) (sum time.Duration) {
	for _, u := range units {
		sum += f.Visit(j.specs[u.Cell], 0)
	}
	return sum
}

// join reads the repeats that are complete, and returns the other ones in their order.
func (j *matrixJob) join(bench *cell.Bench) (missing []matrix.Unit, err error) {
	j.joined = make([]cell.Joined, len(j.specs))
	for i := range j.specs {
		if err := j.joinCell(bench, i); err != nil {
			return nil, err
		}
	}
	for _, u := range j.order {
		if !j.dir.HasRepeat(cell.RepeatName(j.specs[u.Cell], u.Repeat)) {
			missing = append(missing, u)
		}
	}
	return missing, nil
}

// joinCell joins the complete repeats of a cell.
func (j *matrixJob) joinCell(bench *cell.Bench, i int) error {
	var repeats []cell.Repeat
	for n := range j.file.Repeats {
		name := cell.RepeatName(j.specs[i], n)
		if !j.dir.HasRepeat(name) {
			continue
		}
		var repeat cell.Repeat
		if err := j.dir.ReadRepeat(name, &repeat); err != nil {
			return err
		}
		repeats = append(repeats, repeat)
	}
	j.joined[i] = bench.Join(j.specs[i], repeats)
	return nil
}

// maxFailures is the number of failures of a cell in a row after which its other repeats are left out.
const maxFailures = 2

// measure measures units. It stores each repeat when it is complete, and then the summary. A unit that fails does not
// stop the others.
func (j *matrixJob) measure(
	ctx context.Context, bench *cell.Bench, units []matrix.Unit, run *results.Run, progress *live.Progress,
) error {
	failures := map[int]int{} // in a row, by cell
	for k, u := range units {
		spec, name := j.specs[u.Cell], cell.RepeatName(j.specs[u.Cell], u.Repeat)
		title := fmt.Sprintf("%s, repeat %d of %d", j.names[u.Cell], u.Repeat+1, j.file.Repeats)
		progress.Visit(title, len(j.order)-len(units)+k, len(j.order), j.expected(units[k:], bench.Forecast))
		if failures[u.Cell] >= maxFailures {
			continue
		}
		if err := j.dir.Discard(name); err != nil {
			return err
		}
		start := time.Now()
		repeat, err := bench.Repeat(ctx, spec, u.Repeat)
		if ctx.Err() != nil {
			return errors.Join(err, context.Cause(ctx)) // err may say that the target could not be stopped
		}
		if err != nil {
			failures[u.Cell]++
			progress.Note(title + ": " + err.Error())
			j.fail(u, err)
		} else {
			failures[u.Cell] = 0
			if spec.Fixed == nil {
				bench.Forecast.Learn(spec, 0, time.Since(start))
			}
			if err := errors.Join(j.dir.WriteRepeat(name, repeat), j.joinCell(bench, u.Cell)); err != nil {
				return err
			}
			progress.Note(j.names[u.Cell] + ": " + strings.TrimPrefix(inOneLine(j.joined[u.Cell].Cell),
				spec.Load.Workload.Name()))
		}
		run.Cells = cell.Conclude(j.failed())
		if err := errors.Join(j.dir.WriteSummary(*run), keepVersions(j.dir, &j.manifest, run.Cells)); err != nil {
			return err
		}
	}
	return nil
}

// fail notes that a unit failed.
func (j *matrixJob) fail(u matrix.Unit, err error) {
	if j.errors == nil {
		j.errors = map[int][]string{}
	}
	j.errors[u.Cell] = append(j.errors[u.Cell], fmt.Sprintf("repeat %d failed: %v", u.Repeat+1, err))
}

// failed returns the joined cells with the errors of those that failed.
func (j *matrixJob) failed() []cell.Joined {
	all := slices.Clone(j.joined)
	for i, texts := range j.errors {
		c := &all[i].Cell
		c.Warnings = slices.Concat(c.Warnings, texts)
		c.Error, c.Valid = texts[len(texts)-1], false
	}
	return all
}

// place returns a cell's value on each axis, with the value that a knob of the ladder has by default.
func (j *matrixJob) place(i int) map[string]string {
	at := maps.Clone(map[string]string(j.file.Cells[i]))
	for name, value := range j.specs[i].Topology.Knobs {
		if at[name] == "" {
			at[name] = value
		}
	}
	return at
}

// tables returns a table for each question, and then all cells.
func (j *matrixJob) tables(run results.Run) (tables []table.Table) {
	var axes []pivot.Axis
	var placed []pivot.Placed
	for i, spec := range j.specs {
		at := j.place(i)
		c := results.Cell{} // not measured yet
		same := func(c results.Cell) bool {
			return c.Variant == spec.Variant && c.Workload == spec.Load.Workload.Name() &&
				c.Stage == at[matrix.Stage]+at[matrix.Target]
		}
		if k := slices.IndexFunc(run.Cells, same); k >= 0 {
			c = run.Cells[k]
		}
		placed = append(placed, pivot.Placed{Cell: c, At: at})
	}
	for _, a := range j.file.Axes {
		axis := pivot.Axis{Name: a.Name}
		for _, value := range append(slices.Clone(a.Values), "") {
			for _, p := range placed {
				if v := p.At[a.Name]; (value == "" || v == value) && !slices.Contains(axis.Values, v) {
					axis.Values = append(axis.Values, v)
				}
			}
		}
		axes = append(axes, axis)
	}
	for _, q := range j.questions {
		figure, err := pivot.Find(q.Figure)
		must(err) // it was checked
		for _, grid := range pivot.Arrange(placed, axes, q.Rows, q.Columns, figure) {
			tables = append(tables, gridTable(grid, q, figure))
		}
	}
	return append(tables, table.Ladder(run))
}

// gridTable returns the table of a grid.
func gridTable(g pivot.Grid, q matrix.Question, f pivot.Figure) table.Table {
	units := map[pivot.Unit]string{pivot.NS: "ms", pivot.Seconds: "ms", pivot.RPS: "rps", pivot.Share: ""}
	title := strings.TrimSpace(f.Name + " " + units[f.Unit])
	t := table.Table{
		Title: strings.Join(append([]string{title}, g.Fixed...), ", "), Legend: []string{f.Name + ": " + f.Doc},
	}
	t.Columns = []table.Column{{Name: q.Rows, Key: q.Rows, Row: true}}
	if q.Rows == "" {
		t.Columns[0] = table.Column{Name: "cell", Row: true}
	}
	interval := slices.ContainsFunc(slices.Concat(g.Values...), func(v *pivot.Value) bool {
		return v != nil && v.High > 0
	})
	for _, column := range g.Columns {
		name, key := q.Columns+"\n"+column, q.Columns+"="+column
		if q.Columns == "" {
			name, key = title, f.Name
		}
		t.Columns = append(t.Columns, table.Column{Name: name, Key: key, Align: table.Right})
		if interval {
			t.Columns = append(t.Columns, table.Column{Key: key + " low", For: table.Machines},
				table.Column{Key: key + " high", For: table.Machines})
		}
	}
	for i, row := range g.Rows {
		cells := []table.Cell{table.Text(row)}
		for _, v := range g.Values[i] {
			cells = append(cells, gridCells(v, f.Unit, interval)...)
		}
		t.Rows = append(t.Rows, cells)
	}
	return t
}

// gridCells returns the cell of a value, and with interval those of its ends.
func gridCells(v *pivot.Value, unit pivot.Unit, interval bool) []table.Cell {
	show := map[pivot.Unit]func(float64) table.Cell{
		pivot.RPS: table.Rate, pivot.Share: table.Share,
		pivot.NS:      func(ns float64) table.Cell { return table.Nanoseconds(int64(ns)) },
		pivot.Seconds: func(s float64) table.Cell { return table.Nanoseconds(int64(s * 1e9)) },
	}[unit]
	var c, low, high table.Cell
	switch {
	case v == nil:
	case v.Why != "":
		c = table.Blank(v.Why)
	default:
		if c = show(v.Number); v.High > 0 {
			low, high = show(v.Low), show(v.High)
			c.Text += " (" + low.Text + ".." + high.Text + ")"
		}
		c = c.With(v.Doubts...)
	}
	if !interval {
		return []table.Cell{c}
	}
	return []table.Cell{c, low, high}
}

// printOrder prints all measurements in their order, with their expected durations.
func (o matrixOptions) printOrder(s streams, j *matrixJob) error {
	forecast := j.forecast()
	t := table.Table{Title: "Order of the measurements", Columns: []table.Column{
		{Name: "n", Align: table.Right},
		{Name: "cell"},
		{Name: "repeat", Align: table.Right},
		{Name: "seconds", Key: "expected_s", Align: table.Right},
	}}
	for n, u := range j.order {
		t.Rows = append(t.Rows, []table.Cell{
			table.Count(int64(n + 1)), table.Text(j.names[u.Cell]), table.Count(int64(u.Repeat + 1)),
			table.Number(forecast.Visit(j.specs[u.Cell], 0).Seconds()),
		})
	}
	if err := o.output.print(s, t); err != nil {
		return err
	}
	_, err := fmt.Fprintf(s.err, "%d cells x %d repeats, about %v\n", len(j.specs), j.file.Repeats,
		j.expected(j.order, forecast).Round(time.Second))
	return err
}
