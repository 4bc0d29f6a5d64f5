package history

import (
	"cmp"
	"math"
	"slices"

	"github.com/stagebench/stagebench/results"
)

// Ack is an acknowledged write to a record.
type Ack struct {
	Sent, Done int64
	Version    int64 // version after the write
}

// Written is everything that the clients know about the writes to one record.
type Written struct {
	Record string // the path to read it from
	Acks   []Ack
	// Ambiguous counts the writes that may have taken effect or not: timeouts, broken
	// connections, and responses with status 500 or more.
	Ambiguous int64
	// Lowest is the lowest version that existed during the run: that of a read, or that
	// before an acknowledged write. 0 = unknown. The run made all higher versions.
	Lowest int64
}

// Highest returns the highest acknowledged version, 0 if there is none.
func (w Written) Highest() (version int64) {
	for _, a := range w.Acks {
		version = max(version, a.Version)
	}
	return version
}

// Resolve counts lost and applied writes. The map readBack holds the version of
// each record after the run, 0 = the record no longer exists. A record that is not
// in the map could not be read. It counts as unread, and only its acknowledgements
// are judged.
//
// An acknowledged write is lost in three cases: a write acknowledged later got the
// same version; a write sent after its acknowledgement got the same or a lower
// version; or its version is above the version read back. None of these can happen
// without loss.
//
// Limits:
//   - If later writes reuse the version of a lost write, but none of them is
//     acknowledged, the loss is not found. So Lost is a lower bound if there are
//     ambiguous writes. Otherwise it is exact, provided that no other client wrote and
//     that the record was read back from an up-to-date copy.
//   - A version without an acknowledgement comes from an ambiguous write or from
//     another client. It counts as an ambiguous write if there is one.
//   - An ambiguous write counts as not applied if it took effect before the first
//     version known for its record, or after the record was read back.
//   - Uploads and writes whose response has no version, such as follows, are not
//     counted. The record of an upload is named only in its response.
func Resolve(written []Written, readBack map[string]int64) results.Writes {
	var sum results.Writes
	for _, w := range written {
		final, read := readBack[w.Record]
		if !read {
			sum.Unread++
			final = w.Highest()
		}
		sum.Acknowledged += int64(len(w.Acks))
		sum.Lost += lost(w.Acks, final)
		sum.Ambiguous += w.Ambiguous
		sum.AmbiguousApplied += min(w.Ambiguous, unacknowledged(w, final))
	}
	return sum
}

// lost counts the acknowledged writes that are lost, see Resolve.
func lost(acks []Ack, final int64) (n int64) {
	bySent := slices.SortedStableFunc(slices.Values(acks), func(a, b Ack) int { return cmp.Compare(a.Sent, b.Sent) })
	// lowest[i] is the lowest version of the writes bySent[i:].
	lowest := make([]int64, len(bySent)+1)
	lowest[len(bySent)] = math.MaxInt64
	for i, a := range slices.Backward(bySent) {
		lowest[i] = min(a.Version, lowest[i+1])
	}
	copies := map[int64]int{}
	for _, a := range acks {
		copies[a.Version]++
	}
	byDone := slices.SortedStableFunc(slices.Values(acks), func(a, b Ack) int { return cmp.Compare(a.Done, b.Done) })
	for _, a := range byDone {
		copies[a.Version]-- // only writes with this version that were acknowledged later remain
		after, _ := slices.BinarySearchFunc(bySent, a.Done+1, func(b Ack, sent int64) int {
			return cmp.Compare(b.Sent, sent)
		})
		if a.Version > final || copies[a.Version] > 0 || lowest[after] <= a.Version {
			n++
		}
	}
	return n
}

// unacknowledged counts the versions from Lowest to final that no acknowledged write made.
func unacknowledged(w Written, final int64) int64 {
	if w.Lowest == 0 {
		return 0
	}
	acknowledged := map[int64]bool{}
	for _, a := range w.Acks {
		if a.Version > w.Lowest && a.Version <= final {
			acknowledged[a.Version] = true
		}
	}
	return max(0, final-w.Lowest-int64(len(acknowledged)))
}
