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
// and a numbered line below the table. Equal notes share one number. CSV and JSON
// repeat the note in the row.
//
//	err := table.Render(os.Stdout, table.Ladder(run), table.FormatText)
package table

import (
	"fmt"
	"io"
	"slices"
	"strings"
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

// ParseFormat returns the format with this name. An error is a usage error.
func ParseFormat(name string) (Format, error) {
	if f := Format(name); slices.Contains(Formats(), f) {
		return f, nil
	}
	var names []string
	for _, f := range Formats() {
		names = append(names, string(f))
	}
	return "", fmt.Errorf("unknown format %q: want one of %s", name, strings.Join(names, ", "))
}

// Table is rows of cells under columns, with a legend and notes.
type Table struct {
	Title   string
	Columns []Column
	Rows    [][]Cell // one cell per column in each row
	Legend  []string // meaning of the columns; for people only
	Notes   []string // warnings about the table; in every format
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
}

// With returns the cell with notes added.
func (c Cell) With(notes ...string) Cell {
	c.Notes = append(slices.Clone(c.Notes), notes...)
	return c
}

// Render writes one table. JSON is an object with title, rows and notes; each row
// is an object with the columns' keys and the notes of its cells. CSV has a
// header of keys; its last column holds the notes of the row and of the table.
func Render(w io.Writer, t Table, f Format) error { return render(w, []Table{t}, f) }

// RenderAll writes tables with an empty line between them. JSON is one array of
// the objects that Render writes.
func RenderAll(w io.Writer, tables []Table, f Format) error {
	if f != FormatJSON {
		return render(w, tables, f)
	}
	objects := []object{}
	for _, t := range tables {
		if err := t.check(); err != nil {
			return fmt.Errorf("render table %q: %w", t.Title, err)
		}
		objects = append(objects, t.object())
	}
	return renderJSON(w, objects)
}

func render(w io.Writer, tables []Table, f Format) error {
	one := map[Format]func(io.Writer, Table) error{
		FormatText: renderText, FormatMarkdown: renderMarkdown, FormatCSV: renderCSV,
		FormatJSON: func(w io.Writer, t Table) error { return renderJSON(w, t.object()) },
	}[f]
	if one == nil {
		return fmt.Errorf("render table: unknown format %q: want one of %v", f, Formats())
	}
	for i, t := range tables {
		if i > 0 {
			if _, err := fmt.Fprintln(w); err != nil {
				return fmt.Errorf("render table: %w", err)
			}
		}
		err := t.check()
		if err == nil {
			err = one(w, t)
		}
		if err != nil {
			return fmt.Errorf("render table %q: %w", t.Title, err)
		}
	}
	return nil
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
	kept := t
	kept.Columns, kept.Rows = nil, make([][]Cell, len(t.Rows))
	for i, c := range t.Columns {
		if c.For != Everyone && c.For != audience {
			continue
		}
		kept.Columns = append(kept.Columns, c)
		for r, row := range t.Rows {
			kept.Rows[r] = append(kept.Rows[r], row[i])
		}
	}
	return kept
}
