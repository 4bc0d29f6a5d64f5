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
	Version    int64 // that it gave the record
}

// Written is everything that clients know of the writes to one record.
type Written struct {
	Record string // the path at which it can be read
	Acks   []Ack
	// Ambiguous is how many writes were sent without an answer that says whether
	// they took effect: timeouts, broken connections, statuses of 500 and more.
	Ambiguous int64
	// Lowest is the lowest version that a read showed, or that the first write
	// must have found; 0 = not known. Versions above it were made during the run.
	Lowest int64
}

// Highest is the highest version that was acknowledged, 0 when none was.
func (w Written) Highest() (version int64) {
	for _, a := range w.Acks {
		version = max(version, a.Version)
	}
	return version
}

// Resolve says what became of the writes, given the versions that the records
// were read back with after the run, by record: 0 for one that is not there any
// more. A record that is missing from the map could not be read; it is judged by
// the answers alone and counted as unread.
//
// An acknowledged write is lost when its version was given again to another one
// that was acknowledged later, when a write sent after its answer was given a
// version that is not higher, or when its version is above the one read back:
// none of that can be in one history without loss.
//
// What it cannot know:
//   - A lost write whose version was given again only to writes that nobody was
//     acknowledged, before the record was read back, is not seen: Lost is a lower
//     bound then. Without ambiguous writes it is exact, provided that nobody else
//     wrote and that the record was read from a copy that holds everything.
//   - A version that nobody was acknowledged was made by an ambiguous write, or by
//     somebody else; it is ascribed to the former, as far as there are some.
//   - An ambiguous write before the first version that was seen of its record, and
//     one that takes effect only after the reading back, are taken for not applied.
//   - Uploads, whose record only the answer names, and writes whose answer has no
//     version, such as follows, are in none of the figures.
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
		sum.AmbiguousApplied += min(w.Ambiguous, unclaimed(w, final))
	}
	return sum
}

// lost counts the acknowledged writes that cannot be in a history that ends with
// the final version.
func lost(acks []Ack, final int64) (n int64) {
	bySent := slices.SortedStableFunc(slices.Values(acks), func(a, b Ack) int { return cmp.Compare(a.Sent, b.Sent) })
	// lowest[i] is the lowest version of the writes that were sent from the i-th on.
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
		copies[a.Version]-- // what is left are the copies acknowledged later
		after, _ := slices.BinarySearchFunc(bySent, a.Done+1, func(b Ack, sent int64) int { return cmp.Compare(b.Sent, sent) })
		if a.Version > final || copies[a.Version] > 0 || lowest[after] <= a.Version {
			n++
		}
	}
	return n
}

// unclaimed counts the versions that exist and that nobody was acknowledged.
func unclaimed(w Written, final int64) int64 {
	if w.Lowest == 0 {
		return 0
	}
	claimed := map[int64]bool{}
	for _, a := range w.Acks {
		if a.Version > w.Lowest && a.Version <= final {
			claimed[a.Version] = true
		}
	}
	return max(0, final-w.Lowest-int64(len(claimed)))
}
