package replog

import (
	"bytes"
	"errors"

	"zombiezen.com/go/sqlite"
	"zombiezen.com/go/sqlite/sqlitex"
)

// Run runs a statement with its parameters, int64, float64, string, []byte or nil, to its end and calls each for
// every row. What SQLite prepared is kept by the connection.
func Run(conn *sqlite.Conn, sql string, params []any, each func(*sqlite.Stmt)) error {
	return sqlitex.Execute(conn, sql, &sqlitex.ExecOptions{Args: params, ResultFunc: func(row *sqlite.Stmt) error {
		each(row)
		return nil
	}})
}

// Exec runs a statement that returns no rows.
func Exec(conn *sqlite.Conn, sql string, params ...any) error {
	return sqlitex.Execute(conn, sql, &sqlitex.ExecOptions{Args: params})
}

// Number returns the one number that a query returns, 0 when there is no row.
func Number(conn *sqlite.Conn, sql string, params ...any) (n int64, err error) {
	err = Run(conn, sql, params, func(row *sqlite.Stmt) { n = row.ColumnInt64(0) })
	return n, err
}

// Transact calls do in a transaction of its own, which is taken back when that returns an error.
func Transact(conn *sqlite.Conn, do func() error) error {
	err := Exec(conn, "begin immediate")
	if err != nil {
		return err
	}
	if err = do(); err == nil {
		err = Exec(conn, "commit")
	}
	if err != nil && !conn.AutocommitEnabled() { // else SQLite has taken it back
		err = errors.Join(err, Exec(conn, "rollback"))
	}
	return err
}

// Blob is the value of a column as bytes.
func Blob(row *sqlite.Stmt, i int) []byte {
	blob := make([]byte, row.ColumnLen(i))
	row.ColumnBytes(i, blob)
	return blob
}

// Plain is a value of a changeset as Go has it: int64, float64, string, []byte or nil.
func Plain(v sqlite.Value) any {
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
