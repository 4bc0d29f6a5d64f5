package store

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"hash"

	"github.com/jackc/pgx/v5"
)

// rowsPerPage is the number of rows that one statement of Rows reads.
const rowsPerPage = 500

// Row is one row of a table.
type Row struct {
	Key    string         // primary key as text; a slash separates the columns of a composite key
	Values map[string]any // by column: int64 or string
}

// Rows reads a table in the order of its key, page by page, and calls do with each row.
// The table may change between two pages. Rows returns the first error of do.
func (s *Store) Rows(ctx context.Context, name string, do func(Row) error) error {
	for _, t := range tables() {
		if t.name != name {
			continue
		}
		last := make([]int64, t.key)
		for {
			page, err := s.page(ctx, t, last)
			if err != nil {
				return fmt.Errorf("rows of %s: %w", name, err)
			}
			for _, row := range page {
				if err := do(row); err != nil {
					return err
				}
			}
			if len(page) < rowsPerPage {
				return nil
			}
		}
	}
	return fmt.Errorf("unknown table %q", name)
}

// page reads a page of rows after the key after, and sets after to the last key read.
func (s *Store) page(ctx context.Context, t table, after []int64) (page []Row, err error) {
	var args []any
	for _, k := range after {
		args = append(args, k)
	}
	statement := t.pages()
	err = s.read(ctx, func(ctx context.Context, d *database) error {
		rows, err := d.pool.Query(ctx, statement.SQL, append(args, int64(rowsPerPage))...)
		if err != nil {
			return err
		}
		page, err = pgx.CollectRows(rows, func(row pgx.CollectableRow) (Row, error) {
			return scanRow(row, statement.Columns, t.key)
		})
		return err
	})
	if len(page) > 0 {
		for i, c := range statement.Columns[:t.key] {
			after[i] = page[len(page)-1].Values[c.Name].(int64)
		}
	}
	return page, err
}

func scanRow(scanned pgx.Row, columns []Column, key int) (Row, error) {
	row := Row{Values: make(map[string]any, len(columns))}
	values := make([]any, len(columns))
	for i, c := range columns {
		if c.Type == Text {
			values[i] = new(string)
		} else {
			values[i] = new(int64)
		}
	}
	if err := scanned.Scan(values...); err != nil {
		return row, err
	}
	for i, c := range columns {
		switch v := values[i].(type) {
		case *string:
			row.Values[c.Name] = *v
		case *int64:
			row.Values[c.Name] = *v
		}
		if i < key {
			if i > 0 {
				row.Key += "/"
			}
			row.Key += fmt.Sprint(row.Values[c.Name])
		}
	}
	return row, nil
}

// Digest returns a hash of all tables. Equal contents have equal digests on every
// engine.
func (s *Store) Digest(ctx context.Context) (string, error) {
	sum := sha256.New()
	for _, t := range tables() {
		columns := t.pages().Columns
		if err := s.Rows(ctx, t.name, func(r Row) error { return r.write(sum, columns) }); err != nil {
			return "", err
		}
		fmt.Fprintf(sum, "end of %s\n", t.name)
	}
	return hex.EncodeToString(sum.Sum(nil)[:16]), nil
}

func (r Row) write(sum hash.Hash, columns []Column) error {
	for _, c := range columns {
		if _, err := fmt.Fprintf(sum, "%q ", fmt.Sprint(r.Values[c.Name])); err != nil {
			return err
		}
	}
	_, err := fmt.Fprintln(sum)
	return err
}
