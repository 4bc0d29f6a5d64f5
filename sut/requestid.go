package sut

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"sync/atomic"
)

// RequestIDs generates unique request ids. An id is a random prefix, drawn once per
// RequestIDs, and a counter. It is safe for concurrent use.
type RequestIDs struct {
	prefix uint64
	count  atomic.Uint64
}

// NewRequestIDs returns a generator with a new random prefix.
func NewRequestIDs() *RequestIDs {
	var prefix [8]byte
	_, _ = rand.Read(prefix[:]) // never fails
	return &RequestIDs{prefix: binary.BigEndian.Uint64(prefix[:])}
}

// FromHeader returns the id in the request's header if it is valid, else a new one.
func (g *RequestIDs) FromHeader(header map[string][]string) string {
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

// validID reports whether an id has the form that RequestIDHeader allows.
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
