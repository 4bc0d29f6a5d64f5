package main

import (
	"os"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/workloads/preset"
)

// outputFlags holds the flags for printed tables.
type outputFlags struct {
	format string
	wide   bool
}

// flags adds --format and --wide. An unknown format is a usage error before the command runs.
func (o *outputFlags) flags(cmd *cobra.Command) {
	var names []string
	for _, f := range table.Formats() {
		names = append(names, string(f))
	}
	cmd.Flags().StringVar(&o.format, "format", string(table.FormatText), "output format: "+strings.Join(names, ", "))
	cmd.Flags().BoolVar(&o.wide, "wide", false, "do not fit tables to the terminal, or to 100 columns")
	must(cmd.RegisterFlagCompletionFunc("format", cobra.FixedCompletions(names, cobra.ShellCompDirectiveNoFileComp)))
	cmd.PreRunE = func(*cobra.Command, []string) error {
		_, err := table.ParseFormat(o.format)
		return exit.Usage(err)
	}
}

// print writes tables to the standard output.
func (o outputFlags) print(s streams, tables ...table.Table) error {
	style := table.Style{Format: table.Format(o.format), Width: s.width}
	if o.wide {
		style.Width = 0
	}
	return table.Render(s.out, style, tables...)
}

// run writes a run: as JSON its summary, and otherwise tables.
func (o outputFlags) run(s streams, r results.Run, tables ...table.Table) error {
	if table.Format(o.format) == table.FormatJSON {
		return rundir.EncodeSummary(s.out, r)
	}
	return o.print(s, tables...)
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
		"workload": workloads, "workloads": workloads, "data": sut.DataSizes(), "schedule": {"constant", "poisson"},
		"driver": {"vegeta"},
	} {
		if cmd.Flags().Lookup(flag) != nil {
			directive := cobra.ShellCompDirectiveDefault // also files
			if flag == "set" {
				directive = cobra.ShellCompDirectiveNoSpace
			}
			must(cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, directive)))
		}
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
