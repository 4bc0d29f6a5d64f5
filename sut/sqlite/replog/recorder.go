package replog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"zombiezen.com/go/sqlite"
)

// Recorder records what transactions of clients change, and knows the schema under which they do.
type Recorder struct {
	conn    *sqlite.Conn
	session *sqlite.Session // records the open transaction, or nil
	schema  string          // digest of the tables ...
	version int64           // ... at this version of SQLite's schema
}

// NewRecorder returns the recorder of a connection.
func NewRecorder(conn *sqlite.Conn) *Recorder { return &Recorder{conn: conn, version: -1} }

// Begin starts to record a transaction that has just begun. Recorded or Drop ends that.
func (r *Recorder) Begin() (err error) {
	if r.session, err = r.conn.CreateSession(""); err != nil {
		return err
	}
	// All tables, each when it is changed first. Those of the log are written when the session has ended.
	if err = r.session.Attach(""); err != nil {
		r.Drop()
	}
	return err
}

// Recorded ends a recording and returns what changed, as a changeset.
func (r *Recorder) Recorded() ([]byte, error) {
	var set bytes.Buffer
	err := r.session.WriteChangeset(&set)
	r.session.Delete()
	r.session = nil
	return set.Bytes(), err
}

// Drop forgets a transaction that was taken back, or is about to be.
func (r *Recorder) Drop() {
	if r.session != nil {
		r.session.Delete()
		r.session = nil
	}
	r.version = -1 // it may have been the one that changed the schema
}

// Schema returns the digest of the tables and indexes, and ErrSchema where changesets cannot carry them.
func (r *Recorder) Schema() (string, error) {
	version, err := Number(r.conn, `pragma schema_version`)
	if err != nil || version == r.version {
		return r.schema, err
	}
	if r.schema, err = Schema(r.conn); err == nil {
		r.version = version
	}
	return r.schema, err
}

// Schema is the method of that name for any connection.
func Schema(conn *sqlite.Conn) (string, error) {
	sum := sha256.New()
	var tables, triggers []string
	err := Run(conn, `select type, name, coalesce(sql, '') from sqlite_schema where name not like 'sqlite\_%' escape '\' `+
		`and tbl_name not like 'replication\_%' escape '\' order by type, name`, nil, func(row *sqlite.Stmt) {
		for i := range 3 {
			fmt.Fprintf(sum, "%q\n", row.ColumnText(i))
		}
		switch row.ColumnText(0) {
		case "table":
			tables = append(tables, row.ColumnText(1))
		case "trigger":
			triggers = append(triggers, row.ColumnText(1))
		}
	})
	if err != nil {
		return "", err
	}
	if len(triggers) > 0 {
		return "", fmt.Errorf("%w: trigger %s would fire on each copy again", ErrSchema, triggers[0])
	}
	for _, table := range tables {
		const keys = `select count(*) from pragma_table_info(?) where pk > 0 and ("notnull" or upper(type) = 'INTEGER')`
		switch keyed, err := Number(conn, keys, table); {
		case err != nil:
			return "", err
		case keyed == 0:
			return "", fmt.Errorf("%w: table %s has no primary key that is never null, which changes need", ErrSchema, table)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

// NoSchema is the digest of a database without tables.
func NoSchema() string { return hex.EncodeToString(sha256.New().Sum(nil)[:8]) }
