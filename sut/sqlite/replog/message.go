package replog

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
)

// Start is the start-up packet by which a connection becomes one of replication: its length and a request code in the
// style of PostgreSQL's SSLRequest, which no other client sends.
func Start() []byte {
	out := binary.BigEndian.AppendUint32(nil, 8)
	return binary.BigEndian.AppendUint32(out, StartCode)
}

// StartCode is the request code of Start.
const StartCode = 1234<<16 | 7365

// Kind is the type of a message. Each has a byte of type, 4 bytes of length and a body.
type Kind byte

// The messages.
const (
	KindHello    Kind = 'H' // replica: Hello
	KindWelcome  Kind = 'W' // primary: Welcome
	KindRefusal  Kind = 'R' // primary: Refusal, and the end
	KindSnapshot Kind = 'S' // primary: a piece of the database file; an empty one is the end
	KindEntry    Kind = 'E' // primary: an entry
	KindBeat     Kind = 'B' // primary: time and position of the last entry that it has
	KindAck      Kind = 'A' // replica: position up to which it is applied
)

// MaxBody is the largest body of a message in bytes.
const MaxBody = MaxChanges + 1024

// Hello is what a replica says first.
type Hello struct {
	Node       string `json:"node"`
	To         string `json:"to"`          // whom it takes for its primary
	Epoch      int64  `json:"epoch"`       // the highest that it knows
	Position   int64  `json:"position"`    // of the last entry that it has; -1 = its copy is no good
	EntryEpoch int64  `json:"entry_epoch"` // of that entry
	Schema     string `json:"schema"`
}

// Welcome is the answer: entries follow, or a snapshot and then entries.
type Welcome struct {
	Node     string `json:"node"` // of several primaries, the origin as which it makes changes
	Epoch    int64  `json:"epoch"`
	Position int64  `json:"position"` // of the primary's last entry
	Snapshot bool   `json:"snapshot"`
	// Behind says of a snapshot that the primary has all that the copy has.
	Behind bool `json:"behind"`
}

// Refusal is the other answer.
type Refusal struct {
	Reason string `json:"reason"`
	Schema bool   `json:"schema"` // trying again is of no use: the schema differs
	Behind bool   `json:"behind"` // changes alone will not do, but a snapshot may
}

// Write writes a message of one body.
func Write(w io.Writer, kind Kind, body []byte) error {
	header := append(make([]byte, 0, 5), byte(kind))
	if _, err := w.Write(binary.BigEndian.AppendUint32(header, uint32(len(body)))); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// WriteJSON writes a message whose body is a document.
func WriteJSON(w io.Writer, kind Kind, document any) error {
	body, err := json.Marshal(document)
	if err != nil {
		return err
	}
	return Write(w, kind, body)
}

// WriteNumbers writes a message of numbers.
func WriteNumbers(w io.Writer, kind Kind, numbers ...int64) error {
	return Write(w, kind, appendNumbers(nil, numbers...))
}

// WriteEntry writes an entry: numbers, texts with their lengths, changes.
func WriteEntry(w *bufio.Writer, e *Entry) error {
	head := appendNumbers(make([]byte, 0, 128), e.Position, e.Epoch, e.Seq, e.AtUS)
	for _, text := range []string{e.Origin, e.Schema} {
		head = append(append(head, byte(len(text))), text...)
	}
	header := binary.BigEndian.AppendUint32([]byte{byte(KindEntry)}, uint32(len(head)+len(e.Changes)))
	for _, part := range [][]byte{header, head, e.Changes} {
		if _, err := w.Write(part); err != nil {
			return err
		}
	}
	return nil
}

// Read reads a message of at most limit bytes. Memory is taken as bytes come, not as the length promises.
func Read(r io.Reader, limit int) (Kind, []byte, error) {
	var header [5]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	size := int64(binary.BigEndian.Uint32(header[1:]))
	if size > int64(limit) {
		return 0, nil, fmt.Errorf("message of %d bytes, at most %d are taken", size, limit)
	}
	var body bytes.Buffer
	if _, err := io.CopyN(&body, r, size); err != nil {
		if errors.Is(err, io.EOF) {
			err = io.ErrUnexpectedEOF
		}
		return 0, nil, err
	}
	return Kind(header[0]), body.Bytes(), nil
}

// Numbers takes a body of numbers apart.
func Numbers(body []byte, count int) ([]int64, error) {
	if len(body) != 8*count {
		return nil, fmt.Errorf("message of %d bytes, want %d numbers", len(body), count)
	}
	numbers := make([]int64, count)
	for i := range numbers {
		numbers[i] = int64(binary.BigEndian.Uint64(body[8*i:]))
	}
	return numbers, nil
}

// ParseEntry takes the body of an entry apart, which it keeps.
func ParseEntry(body []byte) (*Entry, error) {
	n, err := Numbers(body[:min(len(body), 32)], 4)
	if err != nil {
		return nil, err
	}
	e := &Entry{Position: n[0], Epoch: n[1], Seq: n[2], AtUS: n[3]}
	rest := body[32:]
	for _, text := range []*string{&e.Origin, &e.Schema} {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return nil, errors.New("entry is cut short")
		}
		*text, rest = string(rest[1:1+int(rest[0])]), rest[1+int(rest[0]):]
	}
	e.Changes = rest
	return e, nil
}

func appendNumbers(out []byte, numbers ...int64) []byte {
	for _, n := range numbers {
		out = binary.BigEndian.AppendUint64(out, uint64(n))
	}
	return out
}
