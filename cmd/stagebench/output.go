package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"unicode"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/export"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads/pace"
	"github.com/stagebench/stagebench/workloads/preset"
)

// outputFlags holds the flags for printed tables.
type outputFlags struct {
	format string
	csvDir string // "" = no files
	wide   bool
}

// flags adds --format, --csv-dir and --wide. An unknown format is a usage error before the command runs.
func (o *outputFlags) flags(cmd *cobra.Command) { o.flagsWith(cmd) }

// runFlags is flags for a command that prints a run: it also writes the formats of other tools.
func (o *outputFlags) runFlags(cmd *cobra.Command) {
	more := []string{formatGitHub}
	for _, f := range export.Formats() {
		more = append(more, string(f))
	}
	o.flagsWith(cmd, more...)
}

func (o *outputFlags) flagsWith(cmd *cobra.Command, more ...string) {
	var names []string
	for _, f := range table.Formats() {
		names = append(names, string(f))
	}
	names = append(names, more...)
	cmd.Flags().StringVar(&o.format, "format", string(table.FormatText), "output format: "+strings.Join(names, ", "))
	cmd.Flags().StringVar(&o.csvDir, "csv-dir", "", "also write every table to this directory, each as TITLE.csv")
	cmd.Flags().BoolVar(&o.wide, "wide", false, "do not fit tables to the terminal, or to 100 columns")
	must(cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		if !slices.Contains(names, o.format) {
			return exit.Usagef("unknown format %q: want one of %s", o.format, strings.Join(names, ", "))
		}
		return o.makeCSVDir()
	}
}

// makeCSVDir makes the directory of --csv-dir. It must have no CSV files: they would look like tables of this run.
func (o outputFlags) makeCSVDir() error {
	if o.csvDir == "" {
		return nil
	}
	if err := os.MkdirAll(o.csvDir, 0o755); err != nil {
		return exit.Usagef("--csv-dir: %w\nchoose another directory", err)
	}
	entries, err := os.ReadDir(o.csvDir)
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".csv") {
			return exit.Usagef("--csv-dir %s already has tables, such as %s\nchoose another directory", o.csvDir, e.Name())
		}
	}
	return err
}

// print writes tables to the standard output. As CSV it is only the first one, because a CSV file has one header.
func (o outputFlags) print(s streams, tables ...table.Table) error {
	style := table.Style{Format: table.Format(o.format), Width: s.width, Color: s.color}
	if o.wide {
		style.Width = 0
	}
	err := o.files(tables)
	if style.Format == table.FormatCSV && len(tables) > 1 {
		if o.csvDir == "" {
			_, _ = fmt.Fprintf(s.err, "this is only the table %q: CSV has one table per file\n"+
				"for all %d tables: --csv-dir DIR, or --format json\n", tables[0].Title, len(tables))
		}
		tables = tables[:1]
	}
	return errors.Join(table.Render(s.out, style, tables...), err)
}

// run writes a run: as JSON its summary, in a format of another tool its figures, and otherwise its tables.
func (o outputFlags) run(s streams, r results.Run) error { return o.runAs(s, r, table.Run(r)...) }

// runAs is run with other tables.
func (o outputFlags) runAs(s streams, r results.Run, tables ...table.Table) error {
	switch {
	case o.format == string(table.FormatJSON):
		return errors.Join(rundir.EncodeSummary(s.out, r), o.files(tables))
	case o.format == formatGitHub:
		var details bytes.Buffer
		err := table.Render(&details, table.Style{Format: table.FormatMarkdown}, tables...)
		return errors.Join(err, s.gitHub("stagebench "+r.Run, export.Checks(r), details.String()), o.files(tables), whole(r))
	case slices.Contains(export.Formats(), export.Format(o.format)):
		doubtful := slices.DeleteFunc(slices.Clone(r.Cells), func(c results.Cell) bool { return c.Valid })
		if len(doubtful) > 0 {
			_, _ = fmt.Fprintf(s.err, "%d of %d cells are not valid\n", len(doubtful), len(r.Cells))
		}
		err := export.Write(s.out, export.Format(o.format), r)
		switch {
		case errors.Is(err, export.ErrNothing):
			err = exit.Invalidf("%w\nsee the tables of the run: stagebench show RUN", err)
		case errors.Is(err, export.ErrManyCells):
			err = exit.Usagef("%w\nchoose a cell of it: stagebench show RUN --stage lb --workload read-heavy", err)
		}
		return errors.Join(err, o.files(tables), whole(r))
	}
	return o.print(s, tables...)
}

// whole returns an error for a run without its end: a reader of another format would take it for a whole one.
func whole(r results.Run) error {
	if r.Complete {
		return nil
	}
	return exit.Invalidf("%s\nrepeat it, or see its tables: stagebench show RUN", notComplete)
}

// formatGitHub is the format of a step of GitHub Actions.
const formatGitHub = "github"

// gitHub prints an annotation for each check that did not pass, and appends a summary with the details, which are
// Markdown, to the file that GITHUB_STEP_SUMMARY names. Without that variable it prints the summary.
func (s streams) gitHub(title string, checks []export.Check, details string) error {
	if err := export.Annotations(s.out, checks...); err != nil {
		return err
	}
	path := os.Getenv("GITHUB_STEP_SUMMARY")
	if path == "" {
		return export.StepSummary(s.out, export.SummaryLimit, title, checks, details)
	}
	file, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("GITHUB_STEP_SUMMARY: %w\nname a file that can be written, or unset the variable", err)
	}
	room := export.SummaryLimit
	if info, err := file.Stat(); err == nil {
		room -= int(info.Size())
	}
	return errors.Join(export.StepSummary(file, room, title, checks, details), file.Close())
}

// files writes each table to a file of its own, if that was requested.
func (o outputFlags) files(tables []table.Table) error {
	if o.csvDir == "" {
		return nil
	}
	written := map[string]int{}
	for _, t := range tables {
		var text bytes.Buffer
		if err := table.Render(&text, table.Style{Format: table.FormatCSV}, t); err != nil {
			return err
		}
		name := fileName(t.Title)
		if written[name]++; written[name] > 1 {
			name = fmt.Sprintf("%s-%d", name, written[name])
		}
		if err := os.WriteFile(filepath.Join(o.csvDir, name+".csv"), text.Bytes(), 0o644); err != nil {
			return fmt.Errorf("--csv-dir: %w\nchoose another directory", err)
		}
	}
	return nil
}

// fileName returns a title in lower case, with '-' for everything but letters and digits.
func fileName(title string) string {
	return strings.Join(strings.FieldsFunc(strings.ToLower(title), func(r rune) bool {
		return !unicode.IsLetter(r) && !unicode.IsDigit(r)
	}), "-")
}

// wantsColor reports whether colors are written: to a terminal that has them, unless the user does not want them
// (https://no-color.org).
func wantsColor(terminal bool, getenv func(string) string) bool {
	return terminal && getenv("NO_COLOR") == "" && getenv("TERM") != "dumb"
}

// completeFlags makes a shell complete the values of the flags that have known values.
func completeFlags(cmd *cobra.Command) {
	var knobs []string
	for _, name := range knobNames() {
		knobs = append(knobs, name+"=")
	}
	var workloads []string
	for _, w := range preset.Catalogue() {
		workloads = append(workloads, w.Name)
	}
	for flag, values := range map[string][]string{
		"stages": append(stageNames(), "all"), "stage": stageNames(), "engines": {"embedded", "native"}, "set": knobs,
		"workload": workloads, "workloads": workloads, "data": sut.DataSizes(), "schedule": pace.KindNames(),
		"driver": {"vegeta"},
	} {
		if f := cmd.Flags().Lookup(flag); f != nil {
			directive := cobra.ShellCompDirectiveDefault // also files
			if flag == "set" {
				directive = cobra.ShellCompDirectiveNoSpace
			}
			complete := cobra.FixedCompletions(values, directive)
			if f.Value.Type() == "stringSlice" {
				complete = listCompletion(values, directive)
			}
			must(cmd.RegisterFlagCompletionFunc(flag, complete))
		}
	}
}

// listCompletion completes the last one of values that are separated by commas.
func listCompletion(values []string, directive cobra.ShellCompDirective) cobra.CompletionFunc {
	return func(_ *cobra.Command, _ []string, typed string) (all []string, _ cobra.ShellCompDirective) {
		before := typed[:strings.LastIndex(typed, ",")+1]
		for _, v := range values {
			if !slices.Contains(strings.Split(before, ","), v) {
				all = append(all, before+v)
			}
		}
		return all, directive
	}
}

// must panics with an error that only a mistake in the program can cause.
func must(err error) {
	if err != nil {
		panic(err)
	}
}

// widthOf returns the width of text that is written to a file: that of a terminal, or the default.
func widthOf(f *os.File) int {
	if width, _, err := term.GetSize(int(f.Fd())); err == nil && width > 0 {
		return width
	}
	return table.DefaultWidth
}
