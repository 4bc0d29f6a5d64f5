// Package history judges what clients saw of records: which answers were stale,
// and which acknowledged writes are gone.
//
// A record has versions: in one history without loss, each write gives it a
// version of its own, higher by one than the one before. That is all that is
// used here, besides the clients' own clocks; what the target says of its
// replicas is not believed.
//
// Judge and Resolve are pure functions. A Recorder collects the outcomes that
// they need and belongs to one goroutine; the usual order of calls is Record for
// every outcome of a step, EndStep, and Written when the cell is over. It keeps at
// most 40 bytes for each acknowledged write of the cell, and until the end of the
// step 40 for each op on a record.
//
// Times are nanoseconds on one clock of the cell. Nothing here does I/O.
package history

import (
	"cmp"
	"maps"
	"slices"
)

// Seen is what one op showed of one record.
type Seen struct {
	Write   bool
	Cached  bool  // a read that a cache answered
	User    int   // virtual user, -1 = nobody
	Sent    int64 // when the request was handed to a connection
	Done    int64 // when the answer was complete
	Version int64 // shown, or after an acknowledged write; 0 = the target knew no such record
}

// Past is what is left of everything that was seen of one record before. Its
// zero value is a record of which nothing is known.
type Past struct {
	// marks are the acknowledged writes whose version is above that of every
	// write acknowledged earlier, so both fields rise from mark to mark.
	marks []mark
	// own is the highest version acknowledged to each virtual user.
	own map[int]int64
}

// mark is the moment at which a version was known to exist.
type mark struct{ done, version int64 }

// StaleRead is a read that showed less than what had been acknowledged.
type StaleRead struct {
	// AgeNS is how long what it should have shown had been known: from the answer
	// to the first write with a version above the one shown to the sending of the
	// read. With replicas that are behind by L, it is at most L and the delays of
	// the network. An acknowledged write that was lost keeps reads stale until its
	// version is reached anew, so ages then grow with the length of the run.
	AgeNS int64
	// OwnWrite says that the reader himself had been acknowledged a version above
	// the one shown: he cannot read his own write.
	OwnWrite bool
	// Cached says that a cache answered, and not the database.
	Cached bool
}

// Verdict is what the reads of one record came to.
type Verdict struct {
	Reads int64 // that could be judged
	Hits  int64 // of them, those that a cache answered
	Stale []StaleRead
}

// Judge judges the reads among what was seen of one record, in any order, given
// what was seen of it before. A read is stale when it was sent after a newer
// version had been acknowledged, that is after the write's answer was complete:
// of what overlaps in time either order is right. A read that found no record is
// stale when a write to the record had been acknowledged, and is not judged
// otherwise.
//
// It cannot know writes of others than the clients of this run, writes that
// nobody was acknowledged, and records whose name only the answer told, such as
// those of uploads.
func Judge(past Past, seen []Seen) (Verdict, Past) {
	var writes, reads []Seen
	for _, s := range seen {
		if s.Write {
			writes = append(writes, s)
		} else {
			reads = append(reads, s)
		}
	}
	slices.SortStableFunc(writes, func(a, b Seen) int { return cmp.Compare(a.Done, b.Done) })
	slices.SortStableFunc(reads, func(a, b Seen) int { return cmp.Compare(a.Sent, b.Sent) })
	now := Past{marks: slices.Clone(past.marks), own: maps.Clone(past.own)}
	var v Verdict
	for _, read := range reads {
		for len(writes) > 0 && writes[0].Done < read.Sent {
			now.acknowledge(writes[0])
			writes = writes[1:]
		}
		if read.Version == 0 && len(now.marks) == 0 {
			continue // whether there should be a record is not known
		}
		v.Reads++
		if read.Cached {
			v.Hits++
		}
		if age, stale := now.age(read); stale {
			v.Stale = append(v.Stale, StaleRead{AgeNS: age, OwnWrite: read.User >= 0 && now.own[read.User] > read.Version, Cached: read.Cached})
		}
	}
	for _, write := range writes {
		now.acknowledge(write)
	}
	return v, now
}

// acknowledge takes in a write; writes come in the order of their answers.
func (p *Past) acknowledge(w Seen) {
	if n := len(p.marks); n == 0 || w.Version > p.marks[n-1].version {
		p.marks = append(p.marks, mark{w.Done, w.Version})
	}
	if w.User < 0 || w.Version <= p.own[w.User] {
		return
	}
	if p.own == nil {
		p.own = map[int]int64{}
	}
	p.own[w.User] = w.Version
}

// age is how long the first version above the one shown had been known.
func (p *Past) age(read Seen) (ns int64, stale bool) {
	i, _ := slices.BinarySearchFunc(p.marks, read.Version+1, func(m mark, version int64) int { return cmp.Compare(m.version, version) })
	if i == len(p.marks) {
		return 0, false
	}
	return read.Sent - p.marks[i].done, true
}
