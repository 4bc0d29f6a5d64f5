package multiprimary

import (
	"bytes"
	"errors"
	"fmt"
	"strings"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// tables describes the tables of the clients.
type tables struct {
	digest string // of the schema for which byName is valid
	byName map[string]*table
}

// table describes one table and has the statements that read and write its rows.
type table struct {
	name    string
	columns []string
	key     []int   // indexes of the columns of the primary key
	unique  [][]int // the same for each secondary UNIQUE key

	selectSQL, deleteSQL, insertSQL string
	conflictSQL                     []string // by secondary key: selects the primary keys of rows with given values
}

// refresh updates the description of the tables if the schema has changed.
func (l *ledger) refresh() error {
	digest, err := l.Schema()
	if err != nil || digest == l.tables.digest {
		return err
	}
	var names []string
	const all = `select name from sqlite_schema where type = 'table' ` +
		`and name not like 'sqlite\_%' escape '\' and name not like 'replication\_%' escape '\'`
	err = replog.Run(l.conn, all, nil, func(row *sqlite.Stmt) { names = append(names, row.ColumnText(0)) })
	if err != nil {
		return err
	}
	byName := map[string]*table{}
	for _, name := range names {
		if byName[name], err = describe(l.conn, name); err != nil {
			return err
		}
	}
	l.tables = tables{digest: digest, byName: byName}
	return nil
}

// describe reads the description of a table. It returns an error for a UNIQUE index on an expression.
func describe(conn *sqlite.Conn, name string) (*table, error) {
	t := &table{name: name}
	err := replog.Run(conn, `select name, pk from pragma_table_info(?) order by cid`, []any{name}, func(row *sqlite.Stmt) {
		if row.ColumnInt64(1) > 0 {
			t.key = append(t.key, len(t.columns))
		}
		t.columns = append(t.columns, row.ColumnText(0))
	})
	if err != nil {
		return nil, err
	}
	var indexes []string
	const keys = `select name from pragma_index_list(?) where "unique" and origin <> 'pk'`
	err = replog.Run(conn, keys, []any{name}, func(row *sqlite.Stmt) {
		indexes = append(indexes, row.ColumnText(0))
	})
	for _, index := range indexes {
		var columns []int
		if err == nil {
			err = replog.Run(conn, `select cid from pragma_index_info(?)`, []any{index}, func(row *sqlite.Stmt) {
				columns = append(columns, row.ColumnInt(0))
			})
		}
		t.unique = append(t.unique, columns)
	}
	if err != nil {
		return nil, err
	}
	all, from, where := t.list(nil), " from "+quote(name)+" where ", t.equals(t.key)
	t.selectSQL, t.deleteSQL = "select "+all+from+where, "delete"+from+where
	t.insertSQL = "insert into " + quote(name) + " (" + all + ") values (?" + strings.Repeat(", ?", len(t.columns)-1) + ")"
	for _, columns := range t.unique {
		for _, i := range columns {
			if i < 0 {
				return nil, fmt.Errorf("table %s has a UNIQUE index on an expression: multi-primary needs plain columns", name)
			}
		}
		t.conflictSQL = append(t.conflictSQL, "select "+t.list(t.key)+from+t.equals(columns))
	}
	return t, nil
}

// list returns the names of columns, separated by commas. nil = all columns.
func (t *table) list(columns []int) string {
	var names []string
	for i := range t.columns {
		names = append(names, quote(t.columns[i]))
	}
	if columns == nil {
		return strings.Join(names, ", ")
	}
	return strings.Join(pick(names, columns), ", ")
}

// equals returns the condition that columns have given values.
func (t *table) equals(columns []int) string {
	var terms []string
	for _, i := range columns {
		terms = append(terms, quote(t.columns[i])+" = ?")
	}
	return strings.Join(terms, " and ")
}

func quote(name string) string { return `"` + strings.ReplaceAll(name, `"`, `""`) + `"` }

func pick[T any](from []T, which []int) []T {
	picked := make([]T, 0, len(which))
	for _, i := range which {
		picked = append(picked, from[i])
	}
	return picked
}

// read returns the row with a key, nil if there is none.
func (t *table) read(conn *sqlite.Conn, key []any) (values []any, err error) {
	err = replog.Run(conn, t.selectSQL, key, func(row *sqlite.Stmt) { values = rowOf(row) })
	return values, err
}

// conflicting returns the keys of rows that have a UNIQUE key of the given row. Such rows prevent its insertion.
func (t *table) conflicting(conn *sqlite.Conn, values []any) (keys [][]any, err error) {
	for i, columns := range t.unique {
		// A null value is not equal to any value, so it finds no rows.
		err = errors.Join(err, replog.Run(conn, t.conflictSQL[i], pick(values, columns), func(row *sqlite.Stmt) {
			keys = append(keys, rowOf(row))
		}))
	}
	return keys, err
}

// writeRow writes the new state of a row. The change has the highest version of the row.
func (l *ledger) writeRow(t *table, c *Change, version Version) error {
	key, err := parseValues(c.Key)
	if err != nil {
		return err
	}
	if err := replog.Exec(l.conn, t.deleteSQL, key...); err != nil {
		return err
	}
	if l.next.hidden > 0 {
		if err := l.deleteHidden(c.Table, c.Key); err != nil {
			return err
		}
	}
	if c.Row != nil {
		if err := l.insertRow(t, c, version); err != nil {
			return err
		}
	}
	if l.next.hidden > 0 {
		return l.restoreHidden(t)
	}
	return nil
}

// insertRow inserts a row and hides rows of lower versions that have its UNIQUE key. If a row of a higher version has
// the key, it hides the new row instead.
func (l *ledger) insertRow(t *table, c *Change, version Version) error {
	holders, err := t.conflicting(l.conn, c.Row)
	if err != nil {
		return err
	}
	for _, holder := range holders {
		key := appendValues(nil, holder)
		theirs, err := l.version(c.Table, key)
		if err != nil {
			return err
		}
		if higher := theirs.Compare(version); higher > 0 || higher == 0 && bytes.Compare(key, c.Key) > 0 {
			return l.hide(c.Table, c.Key, c.Row)
		}
	}
	for _, holder := range holders {
		row, err := t.read(l.conn, holder)
		if err != nil {
			return err
		}
		if row == nil {
			continue // it has two UNIQUE keys of the new row and is hidden already
		}
		if err := replog.Exec(l.conn, t.deleteSQL, holder...); err != nil {
			return err
		}
		if err := l.hide(c.Table, appendValues(nil, holder), row); err != nil {
			return err
		}
	}
	return replog.Exec(l.conn, t.insertSQL, c.Row...)
}

// hide stores a row that must not be in its table.
func (l *ledger) hide(table string, key []byte, row []any) error {
	l.next.hidden++
	return replog.Exec(l.conn, `insert into replication_hidden values (?, ?, ?)`, table, key, appendValues(nil, row))
}

// deleteHidden removes a row from the hidden rows if it is one.
func (l *ledger) deleteHidden(table string, key []byte) error {
	err := replog.Exec(l.conn, `delete from replication_hidden where "table" = ? and key = ?`, table, key)
	l.next.hidden -= int64(l.conn.Changes())
	return err
}

// restoreHidden inserts the hidden rows whose UNIQUE key is free, in descending order of versions.
func (l *ledger) restoreHidden(t *table) error {
	type hidden struct{ key, row []byte }
	var all []hidden
	const rows = `select h.key, h."row" from replication_hidden h ` +
		`left join replication_rows r on r."table" = h."table" and r.key = h.key ` +
		`where h."table" = ? order by r.at_us desc, r.origin desc, h.key desc`
	err := replog.Run(l.conn, rows, []any{t.name}, func(row *sqlite.Stmt) {
		all = append(all, hidden{key: replog.Blob(row, 0), row: replog.Blob(row, 1)})
	})
	if err != nil {
		return err
	}
	for _, h := range all {
		row, err := parseValues(h.row)
		if err != nil {
			return err
		}
		holders, err := t.conflicting(l.conn, row)
		if err != nil {
			return err
		}
		if len(holders) > 0 {
			continue
		}
		if err := replog.Exec(l.conn, t.insertSQL, row...); err != nil {
			return err
		}
		if err := l.deleteHidden(t.name, h.key); err != nil {
			return err
		}
	}
	return nil
}

// rowOf returns the values of the current row.
func rowOf(stmt *sqlite.Stmt) []any {
	values := make([]any, stmt.ColumnCount())
	for i := range values {
		switch stmt.ColumnType(i) {
		case sqlite.TypeInteger:
			values[i] = stmt.ColumnInt64(i)
		case sqlite.TypeFloat:
			values[i] = stmt.ColumnFloat(i)
		case sqlite.TypeText:
			values[i] = stmt.ColumnText(i)
		case sqlite.TypeBlob:
			values[i] = replog.Blob(stmt, i)
		}
	}
	return values
}
