// Package table renders results as text, Markdown, CSV and JSON.
//
// It computes no statistics: every figure in a table is a figure of the run, or
// the ratio of two figures of one column. It writes to the given writer and does
// no other I/O. Functions that build tables are pure.
//
// A Table serves people and machines: a Cell has a text for people and a value
// for machines. A Column can be for one of them only. Text and Markdown show
// units in column titles, durations in milliseconds with three significant
// digits, and thousands separators. CSV and JSON hold plain numbers under stable
// names: durations in nanoseconds (_ns), rates in requests per second (_rps),
// shares as 0..1 (_share).
//
// A warning stays with its figure. A note on a cell becomes a mark in the cell
// and a numbered line below the table. Equal notes share one number, and a note on
// all rows needs none. CSV and JSON repeat the note in the row.
//
// Text fits the width of a terminal. A table for machines may be several for people: each column belongs to a part.
//
//	err := table.Render(os.Stdout, table.Style{Format: table.FormatText, Width: 100}, table.Run(run)...)
package table

import (
	"fmt"
	"io"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Format is an output format of a table.
type Format string

// The formats. Users know FormatText as "table".
const (
	FormatText     Format = "table"
	FormatMarkdown Format = "markdown"
	FormatCSV      Format = "csv"
	FormatJSON     Format = "json"
)

// Formats lists the formats as users name them.
func Formats() []Format { return []Format{FormatText, FormatMarkdown, FormatCSV, FormatJSON} }

// Table is rows of cells under columns, with a legend and notes.
type Table struct {
	Title   string
	Columns []Column
	Rows    [][]Cell // one cell per column in each row
	Legend  []string // meaning of the columns; for people only
	Notes   []string // warnings about the table; in every format
	// PartLegend holds the legends of the parts of the table, by title.
	PartLegend map[string][]string
}

// Align is the alignment of a column.
type Align int

// The alignments: Left for words, Right for numbers.
const (
	Left Align = iota
	Right
)

// Audience selects the formats that show a column.
type Audience int

// The audiences. People read text and Markdown, machines CSV and JSON.
const (
	Everyone Audience = iota
	People
	Machines
)

// Column describes one column.
type Column struct {
	// Name is the title for people, with the unit: "p99 ms". A line break in it
	// keeps the column narrow.
	Name string
	// Key is the name for machines, in lower case with the unit last: "p99_ns". If
	// it is empty, the key is Name with '_' for every other character than letters
	// and digits.
	Key   string
	Align Align
	For   Audience
	// Row: the column identifies the row. If people see the columns of a table in parts, each part has it.
	Row bool
	// Part is the title of the part in which people see the column; "" = with the title of the table.
	Part string
}

// column is a column of a table with rows of type R, and the function that makes its cells.
type column[R any] struct {
	Column
	cell func(R) Cell
}

// words is a left-aligned column. The key may be empty, see Column.
func words[R any](name, key string, cell func(R) Cell) column[R] {
	return column[R]{Column{Name: name, Key: key}, cell}
}

// numbers is a right-aligned column.
func numbers[R any](name, key string, cell func(R) Cell) column[R] {
	return column[R]{Column{Name: name, Key: key, Align: Right}, cell}
}

// machineOnly is a column for CSV and JSON only.
func machineOnly[R any](key string, cell func(R) Cell) column[R] {
	return column[R]{Column{Key: key, For: Machines}, cell}
}

// identifying is a left-aligned column that identifies the row.
func identifying[R any](name string, cell func(R) Cell) column[R] {
	return column[R]{Column{Name: name, Row: true}, cell}
}

// in returns the columns as a part of the table.
func in[R any](part string, columns ...column[R]) []column[R] {
	for i := range columns {
		columns[i].Part = part
	}
	return columns
}

// optional makes cells from a value that a row may lack. Rows without the value get the fallback cell.
func optional[R, T any](of func(R) *T, fallback Cell) func(show func(T) Cell) func(R) Cell {
	return func(show func(T) Cell) func(R) Cell {
		return func(r R) Cell {
			if value := of(r); value != nil {
				return show(*value)
			}
			return fallback
		}
	}
}

// newTable returns a table with one row for each value.
func newTable[R any](title string, columns []column[R], rows []R, legend ...string) Table {
	t := Table{Title: title, Legend: legend}
	for _, c := range columns {
		t.Columns = append(t.Columns, c.Column)
	}
	for _, r := range rows {
		var row []Cell
		for _, c := range columns {
			row = append(row, c.cell(r))
		}
		t.Rows = append(t.Rows, row)
	}
	return t
}

// setAudience sets the audience of the columns with these keys.
func (t *Table) setAudience(audience Audience, keys ...string) {
	for i, c := range t.Columns {
		if slices.Contains(keys, c.key()) {
			t.Columns[i].For = audience
		}
	}
}

// Cell is one entry of a table.
type Cell struct {
	Text  string   // for people
	Value any      // for machines: nil, bool, string, int, int64 or float64
	Notes []string // warnings about this figure
	Bad   bool     // bad news: a terminal shows it in red
}

// With returns the cell with notes added.
func (c Cell) With(notes ...string) Cell {
	c.Notes = append(slices.Clone(c.Notes), notes...)
	return c
}

// Run returns the tables of a run: that of a gate, those of Attack if it was an attack, and otherwise the ladder.
// Further tables show what the cells have: demand of the tiers, traces, and what happened while faults were injected.
func Run(run results.Run) []Table {
	if run.Gate != nil {
		return []Table{Gate(*run.Gate)}
	}
	if len(run.Cells) == 1 && len(run.Cells[0].Steps) == 1 && run.Cells[0].Steps[0].Purpose == "attack" {
		c := run.Cells[0]
		return append(Attack(c.Steps[0], c.SLO), Traces(c.Trace)...)
	}
	tables := []Table{Ladder(run)}
	if demand := Demand(run); len(demand.Rows) > 0 {
		tables = append(tables, demand)
	}
	var workloads []string // of the traces: all stages replay the same ones
	fixed := false
	for _, c := range run.Cells {
		if !slices.Contains(workloads, c.Workload) {
			workloads = append(workloads, c.Workload)
			tables = append(tables, Traces(c.Trace)...)
		}
		fixed = fixed || c.CapacityMethod == results.MethodFixed
	}
	if fixed {
		tables = append(tables, Faults(run)...)
	}
	return tables
}

// Render writes tables with an empty line between them. In JSON a table is an object with title, rows and notes; each
// row is an object with the columns' keys and the notes of its cells. One table is its object, several are an array.
// CSV has a header of keys; its last column holds the notes of the row and of the table.
func Render(w io.Writer, style Style, tables ...Table) error {
	for _, t := range tables {
		if err := t.check(); err != nil {
			return fmt.Errorf("render table %q: %w", t.Title, err)
		}
	}
	if style.Format == FormatJSON {
		objects := []object{}
		for _, t := range tables {
			objects = append(objects, t.object())
		}
		if len(objects) == 1 {
			return renderJSON(w, objects[0])
		}
		return renderJSON(w, objects)
	}
	if style.Format != FormatCSV {
		var parts []Table
		for _, t := range tables {
			parts = append(parts, t.parts()...)
		}
		tables = parts
	}
	for i, t := range tables {
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return fmt.Errorf("render table: %w", err)
			}
		}
		if err := style.one(w, t); err != nil {
			return fmt.Errorf("render table %q: %w", t.Title, err)
		}
	}
	return nil
}

// one writes one table.
func (s Style) one(w io.Writer, t Table) error {
	switch s.Format {
	case FormatText:
		return renderText(w, t, s)
	case FormatMarkdown:
		return renderMarkdown(w, t)
	case FormatCSV:
		return renderCSV(w, t)
	}
	return fmt.Errorf("unknown format %q: want one of %v", s.Format, Formats())
}

// check returns an error for a table that was built incorrectly.
func (t Table) check() error {
	keys := map[string]bool{"notes": true}
	for _, c := range t.Columns {
		if c.For == People {
			continue
		}
		if keys[c.key()] {
			return fmt.Errorf("two columns have the key %q", c.key())
		}
		keys[c.key()] = true
	}
	for i, row := range t.Rows {
		if len(row) != len(t.Columns) {
			return fmt.Errorf("row %d has %d cells for %d columns", i+1, len(row), len(t.Columns))
		}
	}
	return nil
}

func (c Column) key() string {
	if c.Key != "" {
		return c.Key
	}
	return strings.Trim(strings.Map(func(r rune) rune {
		if r >= 'a' && r <= 'z' || r >= '0' && r <= '9' {
			return r
		}
		return '_'
	}, strings.ToLower(c.Name)), "_")
}

// columnsFor returns the table with only the columns of one audience.
func (t Table) columnsFor(audience Audience) Table {
	return t.keep(func(_ int, c Column) bool { return c.For == Everyone || c.For == audience })
}
