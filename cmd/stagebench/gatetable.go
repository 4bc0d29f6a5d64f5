package main

import (
	"fmt"
	"slices"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/gate"
	"github.com/stagebench/stagebench/results/table"
)

// gateTable returns the figures of a gate, a row for each metric.
func gateTable(g results.Gate) table.Table {
	t := table.Table{
		Title: fmt.Sprintf("Gate: %s after %d blocks", g.Verdict, g.Counted),
		Columns: []table.Column{
			{Name: "metric", Row: true},
			{Name: "base", Key: "base", Align: table.Right},
			{Name: "head", Key: "head", Align: table.Right},
			{Key: "unit", For: table.Machines},
			{Name: "change", Key: "change", Align: table.Right},
			{Name: "90 % interval", For: table.People, Align: table.Right},
			{Key: "change_low", For: table.Machines},
			{Key: "change_high", For: table.Machines},
			{Name: "margin", Key: "margin", Align: table.Right},
			{Key: "better", For: table.Machines},
			{Name: "verdict"},
		},
		Legend: []string{"base: " + g.Base + "; head: " + g.Head},
		Notes:  slices.Clone(g.Warnings),
	}
	if g.Why != "" {
		t.Legend = append([]string{g.Why}, t.Legend...)
	}
	if g.OfferedRPS > 0 {
		t.Legend[len(t.Legend)-1] += fmt.Sprintf("; both at %.0f/s", g.OfferedRPS)
	}
	t.Legend = append(t.Legend, "base, head: medians of the blocks; margin: the change for the worse that a pass excludes")
	if dropped := len(g.Blocks) - g.Counted; dropped > 0 && g.Verdict != gate.Invalid {
		i := slices.IndexFunc(g.Blocks, func(b results.GateBlock) bool { return b.Dropped != "" })
		t.Notes = append(t.Notes, fmt.Sprintf("%d of %d blocks do not count; the first one, because %s",
			dropped, len(g.Blocks), g.Blocks[i].Dropped))
	}
	for _, m := range g.Metrics {
		if g.Counted < 2 { // there are no figures
			row := slices.Repeat([]table.Cell{table.Blank()}, len(t.Columns))
			row[0], row[8], row[10] = table.Text(m.Name), gateMargin(m), table.Text(m.Verdict)
			t.Rows = append(t.Rows, row)
			continue
		}
		change := func(x float64) table.Cell {
			cell := table.Number(x)
			cell.Text = gate.Text(m, x)
			return cell
		}
		low, high := change(m.Low), change(m.High)
		t.Rows = append(t.Rows, []table.Cell{
			table.Text(m.Name), gateFigure(m, m.Base), gateFigure(m, m.Head), table.Text(m.Unit), change(m.Change),
			table.Text(low.Text + " .. " + high.Text), low, high, gateMargin(m), table.Text(m.Better), table.Text(m.Verdict),
		})
	}
	return t
}

// gateFigure returns a figure with its unit.
func gateFigure(m results.GateMetric, value float64) table.Cell {
	cell := table.Number(value)
	switch m.Unit {
	case "ns":
		cell.Text = table.Milliseconds(int64(value)) + " ms"
	case "rps":
		cell.Text = table.Rate(value).Text + "/s"
	default:
		cell.Text = table.Share(value).Text
	}
	return cell
}

// gateMargin returns the change for the worse that a pass excludes, with its sign.
func gateMargin(m results.GateMetric) table.Cell {
	cell := table.Number(m.Margin)
	worse := m.Margin
	if m.Better == "higher" {
		worse = 1/(1+m.Margin) - 1
	}
	cell.Text = gate.Text(m, worse)
	return cell
}
