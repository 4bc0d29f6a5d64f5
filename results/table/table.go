// Package table shows what was measured as text, Markdown, CSV and JSON.
//
// It computes no statistics: every figure in a table is a figure of the run,
// or the ratio of two that stand in the same column. It does no I/O but on the
// writer that it is given. Functions that build tables are pure.
//
// A Table is for people and for machines at once: a Cell carries the text that
// people read and the value that machines read, a Column may be for one of
// them alone. Text and Markdown say units in column titles, show durations in
// milliseconds with three significant digits and have a thousands separator.
// CSV and JSON hold plain numbers under stable names, durations in nanoseconds
// (_ns), rates in requests per second (_rps), shares as 0..1 (_share).
//
// Doubts travel with the number: a note on a cell becomes a mark in it and a
// numbered line below the table, equal notes share a number, and CSV and JSON
// repeat it in the row.
//
//	err := table.Render(os.Stdout, table.Ladder(run), table.FormatText)
package table

import (
	"fmt"
	"io"
	"slices"
	"strings"
)

// Format is a way to write a table.
type Format string

// The formats. FormatText is called "table" where users choose one.
const (
	FormatText     Format = "table"
	FormatMarkdown Format = "markdown"
	FormatCSV      Format = "csv"
	FormatJSON     Format = "json"
)

// Formats lists the formats as users name them.
func Formats() []Format { return []Format{FormatText, FormatMarkdown, FormatCSV, FormatJSON} }

// ParseFormat returns the format of that name. The error is one of usage.
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

// Table is rows of cells under columns, with what must be known to read them.
type Table struct {
	Title   string
	Columns []Column
	Rows    [][]Cell // as many cells in each as there are columns
	Legend  []string // what the columns mean; for people only
	Notes   []string // doubts about the table as a whole, in every format
}

// Align is the side of a column that its cells stand on.
type Align int

// The alignments: words stand left, numbers right.
const (
	Left Align = iota
	Right
)

// Audience is who gets to see a column.
type Audience int

// The audiences. People read text and Markdown, machines CSV and JSON.
const (
	Everyone Audience = iota
	People
	Machines
)

// Column describes one column.
type Column struct {
	// Name is the title that people read, with the unit: "p99 ms". It may have
	// a line break where a narrow column is worth it.
	Name string
	// Key is the name that machines read, in lower case with the unit last:
	// "p99_ns". Empty stands for Name with '_' for what is no letter or digit.
	Key   string
	Align Align
	For   Audience
}

// column is one column of a table whose rows are values of type R, with what it shows of them.
type column[R any] struct {
	Column
	cell func(R) Cell
}

// words is a column of words. An empty key stands for the name, as in Column.
func words[R any](name, key string, cell func(R) Cell) column[R] {
	return column[R]{Column{Name: name, Key: key}, cell}
}

// numbers is a column of numbers.
func numbers[R any](name, key string, cell func(R) Cell) column[R] {
	return column[R]{Column{Name: name, Key: key, Align: Right}, cell}
}

// machineOnly is a column that only machines read.
func machineOnly[R any](key string, cell func(R) Cell) column[R] {
	return column[R]{Column{Key: key, For: Machines}, cell}
}

// part makes cells of something that not every row has. Rows without it get the other cell.
func part[R, T any](of func(R) *T, other Cell) func(show func(T) Cell) func(R) Cell {
	return func(show func(T) Cell) func(R) Cell {
		return func(r R) Cell {
			if p := of(r); p != nil {
				return show(*p)
			}
			return other
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

// setAudience says who gets to see the columns with those keys.
func (t *Table) setAudience(reader Audience, keys ...string) {
	for i, c := range t.Columns {
		if slices.Contains(keys, c.key()) {
			t.Columns[i].For = reader
		}
	}
}

// Cell is one entry of a table.
type Cell struct {
	Text  string   // for people
	Value any      // for machines: nil, bool, string, int, int64 or float64
	Notes []string // doubts about this figure
}

// With returns the cell with notes added.
func (c Cell) With(notes ...string) Cell {
	c.Notes = append(slices.Clone(c.Notes), notes...)
	return c
}

// Render writes one table. JSON is an object with title, rows and notes, where
// each row is an object with the columns' keys and the notes of its cells. CSV
// has a header of keys and a last column for the notes of row and table.
func Render(w io.Writer, t Table, f Format) error { return render(w, []Table{t}, f) }

// RenderAll writes several tables: with an empty line between them, or in JSON
// as one array of what Render writes.
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
		return fmt.Errorf("render table: format %q is none of %v", f, Formats())
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

// check finds mistakes of whoever built the table.
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

// only leaves out what is for somebody else.
func (t Table) only(reader Audience) Table {
	kept := t
	kept.Columns, kept.Rows = nil, make([][]Cell, len(t.Rows))
	for i, c := range t.Columns {
		if c.For != Everyone && c.For != reader {
			continue
		}
		kept.Columns = append(kept.Columns, c)
		for r, row := range t.Rows {
			kept.Rows[r] = append(kept.Rows[r], row[i])
		}
	}
	return kept
}
