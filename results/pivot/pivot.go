// Package pivot arranges cells of a run by two of their axes, with one figure in each place. It answers one question:
// how does this figure depend on these two things?
//
// It is pure: it picks figures and computes no statistics, never averages over cells, and prints nothing. Cells that
// differ in further axes are in different grids.
package pivot

import (
	"fmt"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Unit is the unit of a figure.
type Unit string

// The units.
const (
	RPS     Unit = "rps"
	NS      Unit = "ns"
	Share   Unit = "share"
	Seconds Unit = "s"
)

// Figure is a figure of a cell.
type Figure struct {
	Name string // as users write it
	Unit Unit
	Doc  string
	of   func(results.Cell) Value
}

// Value is the figure of one cell.
type Value struct {
	Number    float64
	Low, High float64  // 90 % interval; both 0 = none
	Why       string   // why there is no number; "" = there is one
	Doubts    []string // why the number cannot be trusted
}

// Figures lists the figures.
func Figures() []Figure {
	latency := func(name string, of func(results.Latency) *int64) Figure {
		return Figure{
			name, NS, name + " of the response time; failures count as infinitely slow",
			atReference(func(s *results.Step) Value {
				if ns := of(s.ResponseAll); ns != nil {
					return Value{Number: float64(*ns)}
				}
				return Value{Why: "too few samples beyond it, or failures"}
			}),
		}
	}
	rate := func(name, doc string, of func(*results.Step) float64) Figure {
		return Figure{name, RPS, doc, atReference(func(s *results.Step) Value { return Value{Number: of(s)} })}
	}
	return []Figure{
		{"capacity", RPS, "highest rate that meets the objective, with its 90 % interval", capacity},
		{"peak", RPS, "throughput under overload, with its 90 % interval", peak},
		latency("p50", func(l results.Latency) *int64 { return l.P50 }),
		latency("p90", func(l results.Latency) *int64 { return l.P90 }),
		latency("p95", func(l results.Latency) *int64 { return l.P95 }),
		latency("p99", func(l results.Latency) *int64 { return l.P99 }),
		latency("p99.9", func(l results.Latency) *int64 { return l.P999 }),
		{"errors", Share, "share of requests that failed", atReference(func(s *results.Step) Value {
			if s.Ledger.Scheduled == 0 {
				return Value{Why: "nothing was scheduled"}
			}
			return Value{Number: float64(s.Ledger.Errors()) / float64(s.Ledger.Scheduled)}
		})},
		rate("throughput", "completed requests per second", func(s *results.Step) float64 { return s.CompletedRPS }),
		{"cpu", Seconds, "CPU time of all nodes per request", atReference(func(s *results.Step) Value {
			if seconds := s.CPUPerRequest(); seconds > 0 {
				return Value{Number: seconds}
			}
			return Value{Why: "the CPU time of the target is unknown"}
		})},
	}
}

// Names lists the names of the figures.
func Names() (names []string) {
	for _, f := range Figures() {
		names = append(names, f.Name)
	}
	return names
}

// Find returns the figure with this name.
func Find(name string) (Figure, error) {
	all := Figures()
	i := slices.IndexFunc(all, func(f Figure) bool { return f.Name == name })
	if i < 0 {
		return Figure{}, fmt.Errorf("unknown figure %q: want one of %s", name, strings.Join(Names(), ", "))
	}
	return all[i], nil
}

// Of returns the figure of a cell.
func (f Figure) Of(c results.Cell) Value {
	switch {
	case c.Error != "":
		return Value{Why: "failed: " + c.Error}
	case !c.Measured():
		return Value{Why: "not measured yet"}
	}
	v := f.of(c)
	if v.Why == "" && !c.Valid {
		v.Doubts = append(v.Doubts, "not valid: "+strings.Join(c.Invalid, "; "))
	}
	return v
}

// atReference returns a figure of the latency measurement of a cell: at the reference rate, or at its fixed rate.
func atReference(of func(*results.Step) Value) func(results.Cell) Value {
	return func(c results.Cell) Value {
		if c.Reference == nil {
			return Value{Why: "not measured"}
		}
		return of(c.Reference)
	}
}

func capacity(c results.Cell) Value {
	switch {
	case !c.Searched():
		return Value{Why: "no capacity was searched for"}
	case c.HasInterval():
		return Value{Number: c.CapacityRPS, Low: c.CapacityLow, High: c.CapacityHigh}
	case c.CapacityLow > 0:
		return Value{Number: c.CapacityLow, Doubts: []string{"or more: every offered rate met the objective"}}
	case c.CapacityHigh > 0:
		return Value{Doubts: []string{fmt.Sprintf("no offered rate met the objective; the lowest one was %.0f rps",
			c.CapacityHigh)}}
	}
	return Value{Why: "no capacity was found"}
}

func peak(c results.Cell) Value {
	switch {
	case !c.Searched():
		return Value{Why: "no peak was searched for"}
	case c.PeakRPS == 0:
		return Value{Why: "nothing succeeded under overload"}
	}
	return Value{Number: c.PeakRPS, Low: c.PeakLow, High: c.PeakHigh}
}

// Placed is a cell with its place: its value on each axis.
type Placed struct {
	Cell results.Cell
	At   map[string]string
}

// Grid is a figure by two axes.
type Grid struct {
	Fixed         []string // the values of all other axes that vary, "axis=value"
	Rows, Columns []string // values
	// Values holds a value for each row and column; nil = there is no such cell.
	Values [][]*Value
}

// Axis is an axis with its values, in the order of rows and columns.
type Axis struct {
	Name   string
	Values []string
}

// Arrange returns a grid for each combination of the values of the other axes, in their order. Rows and columns are
// names of axes.
func Arrange(cells []Placed, axes []Axis, rows, columns string, f Figure) (grids []Grid) {
	values := func(name string) []string {
		for _, a := range axes {
			if a.Name == name {
				return a.Values
			}
		}
		return []string{""}
	}
	combinations := [][]string{nil} // of values of the other axes, as "axis=value"
	for _, a := range axes {
		if a.Name == rows || a.Name == columns || len(a.Values) < 2 {
			continue
		}
		var next [][]string
		for _, c := range combinations {
			for _, v := range a.Values {
				next = append(next, append(slices.Clone(c), a.Name+"="+v))
			}
		}
		combinations = next
	}
	for _, fixed := range combinations {
		if g := newGrid(cells, fixed, rows, columns, values(rows), values(columns), f); g != nil {
			grids = append(grids, *g)
		}
	}
	return grids
}

// newGrid returns a grid; nil if no cell belongs to it. A row or column without any cell is left out.
func newGrid(cells []Placed, fixed []string, rows, columns string, down, across []string, f Figure) *Grid {
	within := slices.DeleteFunc(slices.Clone(cells), func(p Placed) bool {
		return slices.ContainsFunc(fixed, func(setting string) bool {
			axis, value, _ := strings.Cut(setting, "=")
			return p.At[axis] != value
		})
	})
	has := func(axis string) func(value string) bool {
		return func(value string) bool {
			return !slices.ContainsFunc(within, func(p Placed) bool { return axis == "" || p.At[axis] == value })
		}
	}
	g := &Grid{
		Fixed: fixed, Rows: slices.DeleteFunc(slices.Clone(down), has(rows)),
		Columns: slices.DeleteFunc(slices.Clone(across), has(columns)),
	}
	if len(within) == 0 {
		return nil
	}
	for _, row := range g.Rows {
		line := make([]*Value, len(g.Columns))
		for j, column := range g.Columns {
			for _, p := range within {
				if (rows == "" || p.At[rows] == row) && (columns == "" || p.At[columns] == column) {
					line[j] = new(f.Of(p.Cell))
				}
			}
		}
		g.Values = append(g.Values, line)
	}
	return g
}
