package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/workloads/preset"
)

// listings returns the tables of `stagebench list` by argument.
func listings() map[string]func() table.Table {
	return map[string]func() table.Table{
		"stages": listStages, "workloads": listWorkloads, "knobs": listKnobs, "engines": listEngines,
	}
}

func listCommand(s streams) *cobra.Command {
	var o outputFlags
	cmd := &cobra.Command{
		Use:       "list stages|workloads|knobs|engines",
		Short:     "List stages, workloads, knobs or engines",
		Example:   "  stagebench list knobs\n  stagebench list workloads --format json",
		ValidArgs: []string{"stages", "workloads", "knobs", "engines"},
		Args:      oneArg("stages, workloads, knobs or engines"),
		RunE: func(_ *cobra.Command, args []string) error {
			list, known := listings()[args[0]]
			if !known {
				return exit.Usagef("cannot list %q\nwant stages, workloads, knobs or engines", args[0])
			}
			return o.print(s, list())
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

func listKnobs() table.Table {
	t := table.Table{
		Title:   "Knobs, set with --set knob=value",
		Columns: columns("knob", "default", "range", "engines", "what it does"),
	}
	for _, k := range ladder.Catalogue() {
		engines := "all"
		if len(k.Engines) > 0 {
			engines = fmt.Sprint(k.Engines)
		}
		t.Rows = append(t.Rows, texts(k.Name, k.Default, k.Range, engines, k.Doc))
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
			if len(tier.Engines) > 1 {
				choose = fmt.Sprintf("--set %s.engine=%s", tier.Role, e.Name)
			}
			t.Rows = append(t.Rows, texts(string(tier.Role), string(e.Name), kind, choose))
		}
	}
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
