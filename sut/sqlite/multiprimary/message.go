package multiprimary

import (
	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// The messages besides those of replog, whose Welcome, Refusal and acknowledgement have other bodies here.
const (
	// kindGreeting has the hello of who wants changes. It is not a Hello, so that a primary that is alone does not
	// take it for one of its replicas.
	kindGreeting replog.Kind = 'P'
	// kindUpTo is the end of a batch, and a heartbeat. It says of origins up to which time all their changes have
	// been sent; empty = there are more.
	kindUpTo replog.Kind = 'T'
)

// hello is what a node says first to one that it wants changes from.
type hello struct {
	Node   string           `json:"node"`
	Origin string           `json:"origin"` // it, as an origin
	To     string           `json:"to"`     // whom it takes the other one for
	Schema string           `json:"schema"`
	Have   map[string]int64 `json:"have"` // by origin: the last change that it has
	// All asks for everything that it did not make itself; else it gets what the other node made.
	All bool `json:"all"`
	// Snapshot asks for the whole database instead, as one file.
	Snapshot bool `json:"snapshot,omitempty"`
}

// entries returns the entries of the log between two positions that a node wants.
func entries(conn *sqlite.Conn, after, to int64, h *hello, node string) (found []replog.Entry, err error) {
	// What a node made before its database began anew is not its own any more.
	all := int64(0)
	if h.All {
		all = 1
	}
	size := 0
	const rows = `select position, origin, seq, at_us, schema, changes from replication_changes ` +
		`where position > ? and position <= ? and origin <> ? ` +
		`and (? or substr(origin, 1, instr(origin, '#') - 1) in (?, ?)) order by position`
	err = replog.Run(conn, rows, []any{after, to, h.Origin, all, node, h.Node}, func(row *sqlite.Stmt) {
		if size > batchBytes || row.ColumnInt64(2) <= h.Have[row.ColumnText(1)] {
			return
		}
		e := replog.Entry{
			Position: row.ColumnInt64(0), Origin: row.ColumnText(1), Seq: row.ColumnInt64(2), AtUS: row.ColumnInt64(3),
			Schema: row.ColumnText(4), Changes: replog.Blob(row, 5),
		}
		size += len(e.Changes) + 64
		found = append(found, e)
	})
	return found, err
}

func (h *hello) wants(origin, from string) bool {
	node := nodeOf(origin)
	return origin != h.Origin && (h.All || node == from || node == h.Node)
}
