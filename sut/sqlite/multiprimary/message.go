package multiprimary

import (
	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// The messages in addition to those of package replog. In a Welcome, Node is the origin name of the sender. An
// acknowledgement carries the index of the last applied change of the origin that gets the acknowledgement.
const (
	// kindGreeting carries a hello. It differs from replog.KindHello, so a primary with replicas does not mistake a
	// multi-primary node for a replica.
	kindGreeting replog.Kind = 'P'
	// kindWatermarks ends a batch, and is the heartbeat. It carries a watermark by origin: all changes of the origin up
	// to this time were sent. Empty = another batch follows at once.
	kindWatermarks replog.Kind = 'T'
)

// hello is the first message of a node that wants changes.
type hello struct {
	Node   string           `json:"node"`
	Origin string           `json:"origin"` // origin name of the sender
	To     string           `json:"to"`     // name of the node that the sender expects at this address
	Schema string           `json:"schema"` // digest
	Have   map[string]int64 `json:"have"`   // by origin: index of the last known change
	// All asks for the changes of all other origins. Otherwise the sender gets the receiver's own changes, and its own
	// changes under an earlier origin name.
	All bool `json:"all"`
	// Snapshot asks for the whole database as one file instead of changes.
	Snapshot bool `json:"snapshot,omitempty"`
}

// readEntries returns the entries of the log that a node wants, with positions above after and up to to. It stops when
// the entries exceed batchBytes.
func readEntries(conn *sqlite.Conn, after, to int64, h *hello, node string) (found []replog.Entry, err error) {
	// A node with a new database also wants the changes that it made with its old database, under another origin name.
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

// wants reports whether the sender of the hello wants the changes of an origin from a node.
func (h *hello) wants(origin, from string) bool {
	node := nodeOf(origin)
	return origin != h.Origin && (h.All || node == from || node == h.Node)
}
