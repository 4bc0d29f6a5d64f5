package sqlite

import (
	"bytes"
	"encoding/binary"
)

// Headers of messages: a start-up packet has no type.
const (
	typedHeader   = 5 // type and length
	untypedHeader = 4 // length
)

// wellFormed reports whether the body of a client's message is one that
// psql-wire can take. Some malformed ones would make it panic, a Bind with a
// negative length for example. Types that it does not know it refuses itself.
// https://www.postgresql.org/docs/15/protocol-message-formats.html
func wellFormed(kind byte, body []byte) bool {
	m := message{rest: body}
	switch kind {
	case 'Q': // Query
		m.text()
	case 'P': // Parse: name, statement, types of parameters
		m.text()
		m.text()
		m.skip(4 * m.number16())
	case 'B': // Bind: portal, statement, formats, parameters, formats of results
		m.text()
		m.text()
		m.skip(2 * m.number16())
		for range m.number16() {
			if n := m.number32(); n != -1 { // NULL
				m.skip(n)
			}
			if m.broken {
				return false
			}
		}
		m.skip(2 * m.number16())
	case 'D', 'C': // Describe, Close: what, name
		m.skip(1)
		m.text()
	case 'E': // Execute: portal, most rows
		m.text()
		m.skip(4)
	case 'S', 'H', 'X': // Sync, Flush, Terminate
	default:
		return true
	}
	return !m.broken && len(m.rest) == 0
}

// message takes a message apart.
type message struct {
	rest   []byte
	broken bool // something was asked for that is not there
}

func (m *message) skip(n int) {
	if n < 0 || n > len(m.rest) {
		m.rest, m.broken = nil, true
		return
	}
	m.rest = m.rest[n:]
}

func (m *message) text() {
	if end := bytes.IndexByte(m.rest, 0); end >= 0 {
		m.skip(end + 1)
		return
	}
	m.skip(-1)
}

func (m *message) number16() int {
	if len(m.rest) < 2 {
		m.skip(-1)
		return 0
	}
	n := binary.BigEndian.Uint16(m.rest)
	m.skip(2)
	return int(n)
}

func (m *message) number32() int {
	if len(m.rest) < 4 {
		m.skip(-1)
		return 0
	}
	n := int32(binary.BigEndian.Uint32(m.rest))
	m.skip(4)
	return int(n)
}
