package sut

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"sync/atomic"
)

// RequestIDs makes ids that nobody else makes: a random half that was drawn once,
// and a count. It may be used by many goroutines.
type RequestIDs struct {
	prefix uint64
	count  atomic.Uint64
}

// NewRequestIDs returns a source of ids of its own.
func NewRequestIDs() *RequestIDs {
	var half [8]byte
	_, _ = rand.Read(half[:]) // never fails
	return &RequestIDs{prefix: binary.BigEndian.Uint64(half[:])}
}

// Of returns the id that a request came with, or a new one.
func (g *RequestIDs) Of(header map[string][]string) string {
	if sent := header[RequestIDHeader]; len(sent) == 1 && validID(sent[0]) {
		return sent[0]
	}
	var raw [16]byte
	binary.BigEndian.PutUint64(raw[:8], g.prefix)
	binary.BigEndian.PutUint64(raw[8:], g.count.Add(1))
	var text [32]byte
	hex.Encode(text[:], raw[:])
	return string(text[:])
}

// validID reports whether an id of a client's is one that RequestIDHeader
// lets pass.
func validID(id string) bool {
	for i := range len(id) {
		switch c := id[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_', c == '.':
		default:
			return false
		}
	}
	return 0 < len(id) && len(id) <= 64
}
