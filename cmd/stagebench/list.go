package main

import (
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node"
	"github.com/stagebench/stagebench/workloads/pace"
	"github.com/stagebench/stagebench/workloads/preset"
)

func listCommand(s streams) *cobra.Command {
	var o outputFlags
	lists := []string{"stages", "workloads", "schedules", "engines", "knobs"}
	cmd := &cobra.Command{
		Use:     "list " + strings.Join(lists, "|") + " [TIER]",
		Short:   "List stages, workloads, schedules, engines or knobs",
		Example: "  stagebench list knobs\n  stagebench list knobs cache\n  stagebench list workloads --format json",
		ValidArgsFunction: func(_ *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
			switch {
			case len(args) == 0:
				return lists, cobra.ShellCompDirectiveNoFileComp
			case len(args) == 1 && args[0] == "knobs":
				return knobTiers(), cobra.ShellCompDirectiveNoFileComp
			}
			return nil, cobra.ShellCompDirectiveNoFileComp
		},
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) == 0 || len(args) > 2 || len(args) == 2 && args[0] != "knobs" {
				return exit.Usagef("%s wants one of %s, or knobs and a tier\nsee: %s --help",
					cmd.CommandPath(), strings.Join(lists, ", "), cmd.CommandPath())
			}
			return nil
		},
		RunE: func(_ *cobra.Command, args []string) error {
			switch args[0] {
			case "stages":
				return o.print(s, listStages())
			case "workloads":
				return o.print(s, listWorkloads())
			case "schedules":
				return o.print(s, listSchedules())
			case "engines":
				return o.print(s, listEngines(), listDifferences())
			case "knobs":
				return o.listKnobs(s, args[1:])
			}
			return exit.Usagef("cannot list %q%s\nwant one of %s", args[0], didYouMean("", args[0], lists),
				strings.Join(lists, ", "))
		},
	}
	o.flags(cmd)
	return cmd
}

func listStages() table.Table {
	t := table.Table{Title: "Stages", Columns: columns("stage", "adds", "hosts", "units")}
	for _, info := range ladder.Stages() {
		topology, err := ladder.Build(info.Stage, nil, 0.1)
		if err != nil {
			panic("build a listed stage with default knobs: " + err.Error())
		}
		var hosts []string
		for _, h := range topology.Hosts {
			hosts = append(hosts, h.Name)
		}
		row := texts(string(info.Stage), info.Adds, strings.Join(hosts, " "))
		t.Rows = append(t.Rows, append(row, table.Number(topology.Units())))
	}
	return t
}

func listWorkloads() table.Table {
	t := table.Table{Title: "Workloads", Columns: columns("workload", "what it is", "share of ops in %")}
	for _, w := range preset.Catalogue() {
		t.Rows = append(t.Rows, texts(w.Name, w.Doc, w.Mix.String()))
	}
	return t
}

func listSchedules() table.Table {
	t := table.Table{
		Title: "Schedules", Columns: columns("schedule", "what it is", "with its settings"),
		Legend: []string{
			"a rate is in requests per second, or a proportion such as x2: then the mean is the given rate; the last four " +
				"also take arrivals=constant, and then their requests are evenly spaced",
		},
	}
	for _, k := range pace.Kinds() {
		t.Rows = append(t.Rows, texts(k.Name, k.Doc, k.Default))
	}
	return t
}

// listKnobs prints the knobs of all tiers, or of one: as text a block for each knob, and in other formats one table.
func (o outputFlags) listKnobs(s streams, tier []string) error {
	names := knobTiers()
	if len(tier) > 0 {
		if !slices.Contains(names, tier[0]) {
			return exit.Usagef("no tier %q%s\nwant one of %s", tier[0], didYouMean("", tier[0], names),
				strings.Join(names, ", "))
		}
		names = tier
	}
	if table.Format(o.format) != table.FormatText || o.wide {
		return o.print(s, knobTable(names))
	}
	var text strings.Builder
	for _, k := range knobsOfTiers(names) {
		fmt.Fprintf(&text, "%-28s %s", k.Name+"="+k.Default, k.Range)
		if len(k.Engines) > 0 {
			fmt.Fprintf(&text, "  (only %s)", engineNames(k))
		}
		text.WriteString("\n")
		for _, line := range table.Wrap(k.Doc, s.width-knobIndent) {
			fmt.Fprintf(&text, "%*s%s\n", knobIndent, "", line)
		}
	}
	text.WriteString("\nset a knob with --set NAME=VALUE\n")
	_, err := io.WriteString(s.out, text.String())
	return errors.Join(err, o.files([]table.Table{knobTable(names)}))
}

// knobIndent is the indentation of the description of a knob.
const knobIndent = 4

// knobTiers lists the tiers that have knobs, which are the first parts of their names.
func knobTiers() (tiers []string) {
	for _, name := range knobNames() {
		if tier, _, _ := strings.Cut(name, "."); !slices.Contains(tiers, tier) {
			tiers = append(tiers, tier)
		}
	}
	return tiers
}

// knobsOfTiers lists the knobs of some tiers.
func knobsOfTiers(tiers []string) []ladder.Knob {
	return slices.DeleteFunc(ladder.Catalogue(), func(k ladder.Knob) bool {
		tier, _, _ := strings.Cut(k.Name, ".")
		return !slices.Contains(tiers, tier)
	})
}

// engineNames lists the engines that support a knob.
func engineNames(k ladder.Knob) string {
	if len(k.Engines) == 0 {
		return "all"
	}
	var names []string
	for _, e := range k.Engines {
		names = append(names, string(e))
	}
	return strings.Join(names, " ")
}

func knobTable(tiers []string) table.Table {
	t := table.Table{Title: "Knobs", Columns: columns("knob", "default", "range", "engines", "what it does")}
	for _, k := range knobsOfTiers(tiers) {
		t.Rows = append(t.Rows, texts(k.Name, k.Default, k.Range, engineNames(k), k.Doc))
	}
	return t
}

func listEngines() table.Table {
	t := table.Table{Title: "Engines", Columns: columns("role", "engine", "kind", "choose with")}
	for _, tier := range ladder.Tiers() {
		for _, e := range tier.Engines {
			kind, choose := "embedded", "-"
			if e.Native {
				kind = "native, must be installed"
			}
			if ladder.Selectable(tier.Role) {
				choose = fmt.Sprintf("--set %s.engine=%s", tier.Role, e.Name)
			}
			t.Rows = append(t.Rows, texts(string(tier.Role), string(e.Name), kind, choose))
		}
	}
	return t
}

// listDifferences lists how engines differ from what the kit of tests asks of their role.
func listDifferences() table.Table {
	t := table.Table{Title: "Differences", Columns: columns("engine", "tests", "what it does otherwise")}
	t.Columns[1].Align = table.Right
	for _, tier := range ladder.Tiers() {
		for _, e := range tier.Engines {
			for _, d := range node.Differences(e.Name) {
				row := append(texts(string(e.Name)), table.Count(int64(len(d.Cases))), table.Text(d.Reason))
				t.Rows = append(t.Rows, row)
			}
		}
	}
	t.Legend = []string{"tests: those that fail for this reason, of the kit for all engines of the role"}
	return t
}

func columns(names ...string) []table.Column {
	var cs []table.Column
	for _, name := range names {
		cs = append(cs, table.Column{Name: name})
	}
	return cs
}

func texts(values ...string) []table.Cell {
	var cells []table.Cell
	for _, v := range values {
		cells = append(cells, table.Text(v))
	}
	return cells
}
