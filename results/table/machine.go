package table

import (
	"bytes"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
)

func renderCSV(w io.Writer, t Table) error {
	t = t.columnsFor(Machines)
	out := csv.NewWriter(w)
	var header []string
	for _, c := range t.Columns {
		header = append(header, c.key())
	}
	if err := out.Write(append(header, "notes")); err != nil {
		return err
	}
	for _, row := range t.Rows {
		var record []string
		for _, c := range row {
			text, err := c.csv()
			if err != nil {
				return err
			}
			record = append(record, text)
		}
		notes := strings.Join(slices.Concat(rowNotes(row), t.Notes), "; ")
		if err := out.Write(append(record, oneLine(notes))); err != nil {
			return err
		}
	}
	out.Flush()
	return out.Error()
}

func (c Cell) csv() (string, error) {
	switch v := c.Value.(type) {
	case nil:
		return "", nil
	case string:
		return oneLine(v), nil
	case bool, int, int64:
		return fmt.Sprint(v), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	}
	return "", fmt.Errorf("a cell has a value of type %T", c.Value)
}

// object is a table in JSON.
type object struct {
	Title string    `json:"title"`
	Rows  []jsonRow `json:"rows"`
	Notes []string  `json:"notes"`
}

// jsonRow is a JSON object with its members in column order. A Go map would lose this order.
type jsonRow struct {
	columns []Column
	cells   []Cell
}

func (t Table) object() object {
	t = t.columnsFor(Machines)
	o := object{Title: t.Title, Rows: []jsonRow{}, Notes: append([]string{}, t.Notes...)}
	columns := append(t.Columns, Column{Key: "notes"})
	for _, row := range t.Rows {
		o.Rows = append(o.Rows, jsonRow{columns, append(row, Cell{Value: rowNotes(row)})})
	}
	return o
}

// MarshalJSON implements json.Marshaler.
func (r jsonRow) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false) // keep "p99<100ms" readable
	for i, c := range r.cells {
		out.WriteByte("{,"[min(i, 1)])
		if err := encoder.Encode(r.columns[i].key()); err != nil {
			return nil, err
		}
		out.WriteByte(':')
		if err := encoder.Encode(c.Value); err != nil {
			return nil, fmt.Errorf("column %s: %w", r.columns[i].key(), err)
		}
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

func renderJSON(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// rowNotes lists the notes of a row's cells, each once; never nil.
func rowNotes(row []Cell) []string {
	notes := []string{}
	for _, c := range row {
		for _, note := range c.Notes {
			if !slices.Contains(notes, note) {
				notes = append(notes, note)
			}
		}
	}
	return notes
}
