package replog

import (
	"bytes"

	"zombiezen.com/go/sqlite"
)

// Run runs a statement with its parameters, int64, float64, string, []byte or nil,
// to its end and calls each, if there is one, for every row. What SQLite prepared
// is kept by the connection.
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

// Bind sets the i-th parameter of a statement, from 1 on; what is no value of
// SQLite is null.
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

// Plain is a value of a changeset as Go has it: int64, float64, string, []byte or
// nil.
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

// Record starts to record the transaction that has just begun on a connection.
// Recorded or Delete ends that.
func Record(conn *sqlite.Conn) (*sqlite.Session, error) {
	session, err := conn.CreateSession("")
	if err != nil {
		return nil, err
	}
	// All tables, each when it is changed first. Those of the log are not among
	// them: they are written when the session has ended.
	if err := session.Attach(""); err != nil {
		session.Delete()
		return nil, err
	}
	return session, nil
}

// Recorded ends a recording and returns what changed, as a changeset.
func Recorded(session *sqlite.Session) (changes []byte, err error) {
	defer session.Delete()
	var set bytes.Buffer
	err = session.WriteChangeset(&set)
	return set.Bytes(), err
}
