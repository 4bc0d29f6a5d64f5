package table

import (
	"fmt"
	"slices"

	"github.com/stagebench/stagebench/results"
)

// Gate returns the figures of a gate, a row for each metric.
func Gate(g results.Gate) Table {
	t := Table{
		Title: fmt.Sprintf("Gate: %s after %d blocks", g.Verdict, g.Counted),
		Columns: []Column{
			{Name: "metric", Row: true},
			{Name: "base", Key: "base", Align: Right},
			{Name: "head", Key: "head", Align: Right},
			{Key: "unit", For: Machines},
			{Name: "change", Key: "change", Align: Right},
			{Name: "90 % interval", For: People, Align: Right},
			{Key: "change_low", For: Machines},
			{Key: "change_high", For: Machines},
			{Name: "margin", Key: "margin", Align: Right},
			{Key: "better", For: Machines},
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
	if dropped := len(g.Blocks) - g.Counted; dropped > 0 && g.Verdict != results.GateInvalid {
		i := slices.IndexFunc(g.Blocks, func(b results.GateBlock) bool { return b.Dropped != "" })
		t.Notes = append(t.Notes, fmt.Sprintf("%d of %d blocks do not count; the first one, because %s",
			dropped, len(g.Blocks), g.Blocks[i].Dropped))
	}
	for _, m := range g.Metrics {
		if g.Counted < 2 { // there are no figures
			row := slices.Repeat([]Cell{Blank()}, len(t.Columns))
			row[0], row[8], row[10] = Text(m.Name), gateMargin(m), Text(m.Verdict)
			t.Rows = append(t.Rows, row)
			continue
		}
		change := func(x float64) Cell {
			cell := Number(x)
			cell.Text = m.Text(x)
			return cell
		}
		low, high := change(m.Low), change(m.High)
		t.Rows = append(t.Rows, []Cell{
			Text(m.Name), gateFigure(m, m.Base), gateFigure(m, m.Head), Text(m.Unit), change(m.Change),
			Text(low.Text + " .. " + high.Text), low, high, gateMargin(m), Text(m.Better), Text(m.Verdict),
		})
	}
	return t
}

// gateFigure returns a figure with its unit.
func gateFigure(m results.GateMetric, value float64) Cell {
	cell := Number(value)
	switch m.Unit {
	case "ns":
		cell.Text = Milliseconds(int64(value)) + " ms"
	case "rps":
		cell.Text = Rate(value).Text + "/s"
	case results.GateShare:
		cell.Text = Share(value).Text
	}
	return cell
}

// gateMargin returns the change for the worse that a pass excludes, with its sign.
func gateMargin(m results.GateMetric) Cell {
	cell := Number(m.Margin)
	cell.Text = m.Text(m.Worst())
	return cell
}
