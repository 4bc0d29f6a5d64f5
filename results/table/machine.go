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
	t = t.only(Machines)
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
		if err := out.Write(append(record, plain(strings.Join(slices.Concat(rowNotes(row), t.Notes), "; ")))); err != nil {
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
		return plain(v), nil
	case bool:
		return strconv.FormatBool(v), nil
	case int:
		return strconv.Itoa(v), nil
	case int64:
		return strconv.FormatInt(v, 10), nil
	case float64:
		return strconv.FormatFloat(v, 'f', -1, 64), nil
	}
	return "", fmt.Errorf("a cell holds a %T", c.Value)
}

func renderJSON(w io.Writer, t Table) error {
	var compact bytes.Buffer
	if err := t.json(&compact); err != nil {
		return err
	}
	return indent(w, compact.Bytes())
}

func renderJSONArray(w io.Writer, tables []Table) error {
	var compact bytes.Buffer
	compact.WriteByte('[')
	for i, t := range tables {
		if i > 0 {
			compact.WriteByte(',')
		}
		if err := t.check(); err != nil {
			return fmt.Errorf("render table %q: %w", t.Title, err)
		}
		if err := t.json(&compact); err != nil {
			return fmt.Errorf("render table %q: %w", t.Title, err)
		}
	}
	compact.WriteByte(']')
	return indent(w, compact.Bytes())
}

// json writes the table as an object whose keys keep the order of the columns,
// which a Go map would lose.
func (t Table) json(out *bytes.Buffer) error {
	t = t.only(Machines)
	if err := member(out, "{", "title", t.Title); err != nil {
		return err
	}
	out.WriteString(`,"rows":[`)
	for r, row := range t.Rows {
		open := "{"
		if r > 0 {
			open = ",{"
		}
		for i, c := range row {
			if err := member(out, open, t.Columns[i].key(), c.Value); err != nil {
				return err
			}
			open = ","
		}
		if err := member(out, open, "notes", rowNotes(row)); err != nil {
			return err
		}
		out.WriteByte('}')
	}
	if err := member(out, "],", "notes", append([]string{}, t.Notes...)); err != nil {
		return err
	}
	out.WriteByte('}')
	return nil
}

// member writes what comes before it, and then one member of an object.
func member(out *bytes.Buffer, before, key string, value any) error {
	out.WriteString(before)
	encoder := json.NewEncoder(out)
	encoder.SetEscapeHTML(false) // "p99<100ms" is for people too
	if err := encoder.Encode(key); err != nil {
		return err
	}
	out.WriteByte(':')
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("column %s: %w", key, err)
	}
	return nil
}

func indent(w io.Writer, compact []byte) error {
	var out bytes.Buffer
	if err := json.Indent(&out, compact, "", "  "); err != nil {
		return err
	}
	out.WriteByte('\n')
	_, err := w.Write(out.Bytes())
	return err
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
