package replog

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"

	"zombiezen.com/go/sqlite"
)

// Recorder records the changes of transactions and caches the digest of the schema.
type Recorder struct {
	conn    *sqlite.Conn
	session *sqlite.Session // records the open transaction; nil = none
	schema  string          // digest of the schema
	version int64           // SQLite's schema version for which the digest is valid; -1 = none
}

// NewRecorder returns a recorder for the write connection.
func NewRecorder(conn *sqlite.Conn) *Recorder { return &Recorder{conn: conn, version: -1} }

// Begin starts to record a transaction that has just begun. Recorded or Drop ends the recording.
func (r *Recorder) Begin() (err error) {
	if r.session, err = r.conn.CreateSession(""); err != nil {
		return err
	}
	// An empty name attaches all tables, each at its first change. The log's own tables are written only after the session
	// has ended.
	if err = r.session.Attach(""); err != nil {
		r.Drop()
	}
	return err
}

// Recorded ends the recording and returns the changeset.
func (r *Recorder) Recorded() ([]byte, error) {
	var set bytes.Buffer
	err := r.session.WriteChangeset(&set)
	r.session.Delete()
	r.session = nil
	return set.Bytes(), err
}

// Drop discards the recording of a transaction that is or will be rolled back.
func (r *Recorder) Drop() {
	if r.session != nil {
		r.session.Delete()
		r.session = nil
	}
	r.version = -1 // the transaction may have changed the schema
}

// Schema returns the digest of the schema, as the function Schema does. It caches the digest.
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

// Schema returns the digest of the tables and indexes. It returns ErrSchema if changesets do not support the schema.
func Schema(conn *sqlite.Conn) (string, error) {
	sum := sha256.New()
	var tables, triggers []string
	const objects = `select type, name, coalesce(sql, '') from sqlite_schema where name not like 'sqlite\_%' escape '\' ` +
		`and tbl_name not like 'replication\_%' escape '\' order by type, name`
	err := Run(conn, objects, nil, func(row *sqlite.Stmt) {
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
		return "", fmt.Errorf("%w: trigger %s would run again on each replica: remove it", ErrSchema, triggers[0])
	}
	for _, table := range tables {
		const keys = `select count(*) from pragma_table_info(?) where pk > 0 and ("notnull" or upper(type) = 'INTEGER')`
		switch keyed, err := Number(conn, keys, table); {
		case err != nil:
			return "", err
		case keyed == 0:
			return "", fmt.Errorf("%w: table %s needs a primary key that is not null", ErrSchema, table)
		}
	}
	return hex.EncodeToString(sum.Sum(nil)[:8]), nil
}

// NoSchema returns the digest of a database without tables.
func NoSchema() string { return hex.EncodeToString(sha256.New().Sum(nil)[:8]) }
