package replog

import (
	"bytes"
	"errors"

	"zombiezen.com/go/sqlite"
)

// Run runs a statement with its parameters, int64, float64, string, []byte or nil, to its end and calls each, if
// there is one, for every row. What SQLite prepared is kept by the connection.
func Run(conn *sqlite.Conn, sql string, params []any, each func(*sqlite.Stmt)) error {
	stmt, err := conn.Prepare(sql)
	if err != nil {
		return err
	}
	for i, param := range params {
		Bind(stmt, i+1, param)
	}
	for {
		more, err := stmt.Step()
		if err != nil {
			_ = stmt.Reset() // the same error once more
			return err
		}
		if !more {
			return nil
		}
		if each != nil {
			each(stmt)
		}
	}
}

// Exec runs a statement that returns no rows.
func Exec(conn *sqlite.Conn, sql string, params ...any) error { return Run(conn, sql, params, nil) }

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

// Bind sets the i-th parameter of a statement, from 1 on; what is no value of SQLite is null.
func Bind(stmt *sqlite.Stmt, i int, value any) {
	switch v := value.(type) {
	case int64:
		stmt.BindInt64(i, v)
	case float64:
		stmt.BindFloat(i, v)
	case string:
		stmt.BindText(i, v)
	case []byte:
		if len(v) == 0 {
			stmt.BindZeroBlob(i, 0) // no bytes would be null
			return
		}
		stmt.BindBytes(i, v)
	default:
		stmt.BindNull(i)
	}
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
