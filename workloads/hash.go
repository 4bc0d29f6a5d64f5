package workloads

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// Hash identifies the n ops of a workload from position first on: two op sequences with
// the same hash ask for the same things in the same order, on behalf of the same users.
// It covers method, path, class, user and body of each op.
func Hash(w Workload, first, n uint64) string {
	digest := sha256.New()
	var line []byte
	for i := range n {
		op := w.Op(first + i)
		// Lengths stand before texts, so that no two ops run into each other.
		line = appendText(line[:0], op.Method)
		line = appendText(line, op.Path)
		line = appendText(line, string(op.Class))
		line = binary.AppendVarint(line, int64(op.User))
		line = binary.AppendUvarint(line, uint64(len(op.Body)))
		digest.Write(line)
		digest.Write(op.Body)
	}
	return hex.EncodeToString(digest.Sum(nil)[:16])
}

func appendText(to []byte, text string) []byte {
	return append(binary.AppendUvarint(to, uint64(len(text))), text...)
}
