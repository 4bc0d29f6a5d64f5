package workloads

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
)

// Hash returns a digest of n ops of a workload, starting at position first. It covers
// method, path, class, user and body of each op, in order. Two sequences with the same
// hash make the same requests in the same order for the same users.
func Hash(w Workload, first, n uint64) string {
	digest := sha256.New()
	var line []byte
	for i := range n {
		op := w.Op(first + i)
		// A length precedes each text. Otherwise two different ops could give the same bytes.
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
