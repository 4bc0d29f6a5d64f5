package replog

import (
	"bytes"
	"errors"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

// Run executes a statement to its end and calls each for every row. Parameters are int64, float64, string, []byte or
// nil. The connection caches the prepared statement.
func Run(conn *sqlite.Conn, sql string, params []any, each func(*sqlite.Stmt)) error {
	return sqlitex.Execute(conn, sql, &sqlitex.ExecOptions{Args: params, ResultFunc: func(row *sqlite.Stmt) error {
		each(row)
		return nil
	}})
}

// Exec executes a statement that returns no rows.
func Exec(conn *sqlite.Conn, sql string, params ...any) error {
	return sqlitex.Execute(conn, sql, &sqlitex.ExecOptions{Args: params})
}

// Number returns the one integer that a query returns. It returns 0 if there is no row.
func Number(conn *sqlite.Conn, sql string, params ...any) (n int64, err error) {
	err = Run(conn, sql, params, func(row *sqlite.Stmt) { n = row.ColumnInt64(0) })
	return n, err
}

// Transact calls do inside a new transaction. It commits, or rolls back if do or the commit fails.
func Transact(conn *sqlite.Conn, do func() error) error {
	err := Exec(conn, "begin immediate")
	if err != nil {
		return err
	}
	if err = do(); err == nil {
		err = Exec(conn, "commit")
	}
	if err != nil && !conn.AutocommitEnabled() { // otherwise SQLite has rolled back already
		err = errors.Join(err, Exec(conn, "rollback"))
	}
	return err
}

// Blob returns the bytes of a column.
func Blob(row *sqlite.Stmt, i int) []byte {
	blob := make([]byte, row.ColumnLen(i))
	row.ColumnBytes(i, blob)
	return blob
}

// GoValue converts a changeset value to int64, float64, string, []byte or nil.
func GoValue(v sqlite.Value) any {
	switch v.Type() {
	case sqlite.TypeInteger:
		return v.Int64()
	case sqlite.TypeFloat:
		return v.Float()
	case sqlite.TypeText:
		return v.Text()
	case sqlite.TypeBlob:
		return bytes.Clone(v.Blob())
	}
	return nil
}
