package replog

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"

	"github.com/stagebench/stagebench/sut"
)

// StartupPacket returns the packet that turns a connection into a replication connection. It has a length and a request
// code, as PostgreSQL's SSLRequest has, and then the secret of the system. Other clients do not use this code.
func StartupPacket(secret sut.Secret) []byte {
	out := binary.BigEndian.AppendUint32(nil, uint32(8+len(secret)))
	return append(binary.BigEndian.AppendUint32(out, StartupCode), secret...)
}

// StartupCode is the request code of StartupPacket.
const StartupCode = 1234<<16 | 7365

// Kind is the type of a message. A message is a type byte, a length of 4 bytes, and a body.
type Kind byte

// The messages. The comment names the sender.
const (
	KindHello     Kind = 'H' // replica: Hello
	KindWelcome   Kind = 'W' // primary: Welcome
	KindRefusal   Kind = 'R' // primary: Refusal, the last message
	KindSnapshot  Kind = 'S' // primary: a part of the database file; an empty part is the end
	KindEntry     Kind = 'E' // primary: an entry
	KindHeartbeat Kind = 'B' // primary: a heartbeat, with the time and the last position sent; 0 during a snapshot
	KindAck       Kind = 'A' // replica: the last applied position
)

// MaxBody is the largest body of a message in bytes.
const MaxBody = MaxChanges + 1024

// Hello is the first message of a replica.
type Hello struct {
	Node       string `json:"node"`
	To         string `json:"to"`          // name of the node that the replica expects at this address
	Epoch      int64  `json:"epoch"`       // highest epoch that the replica knows
	Position   int64  `json:"position"`    // of the last entry that the replica has; -1 = its copy must be replaced
	EntryEpoch int64  `json:"entry_epoch"` // of that entry
	Schema     string `json:"schema"`      // digest
}

// Welcome accepts a Hello. Entries follow, or a snapshot and then entries.
type Welcome struct {
	Node     string `json:"node"` // multi-primary: the origin name of the sender
	Epoch    int64  `json:"epoch"`
	Position int64  `json:"position"` // of the primary's last entry
	Snapshot bool   `json:"snapshot"`
	// Behind is true if a snapshot follows and the primary has all entries that the replica has.
	Behind bool `json:"behind"`
}

// Refusal rejects a Hello.
type Refusal struct {
	Reason string `json:"reason"`
	Schema bool   `json:"schema"` // the schemas differ: a retry cannot succeed
	Behind bool   `json:"behind"` // the log no longer has the needed changes, a snapshot may help
}

// Write writes a message.
func Write(w io.Writer, kind Kind, body []byte) error {
	header := append(make([]byte, 0, 5), byte(kind))
	if _, err := w.Write(binary.BigEndian.AppendUint32(header, uint32(len(body)))); err != nil {
		return err
	}
	_, err := w.Write(body)
	return err
}

// WriteJSON writes a message whose body is JSON.
func WriteJSON(w io.Writer, kind Kind, document any) error {
	body, err := json.Marshal(document)
	if err != nil {
		return err
	}
	return Write(w, kind, body)
}

// WriteNumbers writes a message whose body is a list of 64-bit integers.
func WriteNumbers(w io.Writer, kind Kind, numbers ...int64) error {
	return Write(w, kind, appendNumbers(nil, numbers...))
}

// WriteEntry writes an entry: integers, strings with their lengths, and changes.
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

// Read reads a message of at most limit bytes. It allocates memory as data arrives: a false length cannot exhaust
// memory.
func Read(r io.Reader, limit int) (Kind, []byte, error) {
	var header [5]byte
	if _, err := io.ReadFull(r, header[:]); err != nil {
		return 0, nil, err
	}
	size := int64(binary.BigEndian.Uint32(header[1:]))
	if size > int64(limit) {
		return 0, nil, fmt.Errorf("message of %d bytes exceeds the limit of %d", size, limit)
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

// Numbers parses a body of count 64-bit integers.
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

// ParseEntry parses the body of an entry. The entry refers to the memory of body.
func ParseEntry(body []byte) (*Entry, error) {
	n, err := Numbers(body[:min(len(body), 32)], 4)
	if err != nil {
		return nil, err
	}
	e := &Entry{Position: n[0], Epoch: n[1], Seq: n[2], AtUS: n[3]}
	rest := body[32:]
	for _, text := range []*string{&e.Origin, &e.Schema} {
		if len(rest) == 0 || len(rest) < 1+int(rest[0]) {
			return nil, errors.New("entry is truncated")
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
