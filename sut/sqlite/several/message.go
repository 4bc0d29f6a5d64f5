package several

import (
	"bufio"
	"encoding/binary"
	"errors"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// The messages besides those of replog, whose Welcome, Refusal and
// acknowledgement have other bodies here.
const (
	// kindGreeting has the hello of who wants changes. It is not a Hello, so that
	// a primary that is alone does not take it for one of its replicas.
	kindGreeting replog.Kind = 'P'
	kindChange   replog.Kind = 'C' // an Entry without its position
	// kindUpTo is the end of a batch, and a heartbeat.
	kindUpTo replog.Kind = 'T'
)

// smallMessage bounds all messages but changes.
const smallMessage = 64 << 10

// hello is what a node says first to one that it wants changes from.
type hello struct {
	Node   string           `json:"node"`
	Origin string           `json:"origin"` // it, as an origin
	To     string           `json:"to"`     // whom it takes the other one for
	Schema string           `json:"schema"`
	Have   map[string]int64 `json:"have"` // by origin: the last change that it has
	// All asks for everything that it did not make itself; else it gets what
	// the other node made.
	All bool `json:"all"`
	// Snapshot asks for the whole database instead, as one file.
	Snapshot bool `json:"snapshot,omitempty"`
}

// refusal is the other answer.
type refusal struct {
	Reason string `json:"reason"`
	// Behind says that changes alone will not do, but a snapshot may.
	Behind bool `json:"behind"`
}

// welcome is the answer: changes follow.
type welcome struct {
	Origin string `json:"origin"`
}

// upTo ends a batch.
type upTo struct {
	// UpTo says of origins up to which time all their changes have been sent;
	// empty = there are more.
	UpTo map[string]int64 `json:"up_to,omitempty"`
}

func writeEntry(w *bufio.Writer, e *Entry) error {
	head := binary.BigEndian.AppendUint64(make([]byte, 0, 96), uint64(e.Seq))
	head = binary.BigEndian.AppendUint64(head, uint64(e.AtUS))
	head = appendBytes(appendBytes(head, e.Origin), e.Schema)
	header := binary.BigEndian.AppendUint32([]byte{byte(kindChange)}, uint32(len(head)+len(e.Changes)))
	for _, part := range [][]byte{header, head, e.Changes} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// parseEntry takes the body of an entry apart, which it keeps.
func parseEntry(body []byte) (*Entry, error) {
	if len(body) < 16 {
		return nil, errCutShort
	}
	n, err := replog.Numbers(body[:16], 2)
	if err != nil {
		return nil, err
	}
	r := reader{rest: body[16:]}
	e := &Entry{Seq: n[0], AtUS: n[1], Origin: string(r.bytes()), Schema: string(r.bytes())}
	if r.broken {
		return nil, errCutShort
	}
	e.Changes = r.rest
	return e, nil
}

// entries returns the entries of the log between two positions that a node wants.
func entries(conn *sqlite.Conn, after, to int64, h *hello, node string) (found []Entry, err error) {
	// What a node made before its database began anew is not its own any more.
	all := int64(0)
	if h.All {
		all = 1
	}
	size := 0
	err = replog.Run(conn, `select position, origin, seq, at_us, schema, changes from replication_changes where position > ? and position <= ? and origin <> ? `+
		`and (? or substr(origin, 1, instr(origin, '#') - 1) in (?, ?)) order by position`,
		[]any{after, to, h.Origin, all, node, h.Node}, func(row *sqlite.Stmt) {
			if size > batchBytes || row.ColumnInt64(2) <= h.Have[row.ColumnText(1)] {
				return
			}
			e := Entry{
				Position: row.ColumnInt64(0), Origin: row.ColumnText(1), Seq: row.ColumnInt64(2), AtUS: row.ColumnInt64(3),
				Schema: row.ColumnText(4), Changes: blobOf(row, 5),
			}
			size += len(e.Changes) + 64
			found = append(found, e)
		})
	return found, err
}

// wants reports whether a node wants the changes of an origin.
func (h *hello) wants(origin, from string) bool {
	node := nodeOf(origin)
	return origin != h.Origin && (h.All || node == from || node == h.Node)
}

var errMessage = errors.New("message out of place")
