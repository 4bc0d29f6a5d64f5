// Package history finds stale reads and lost writes from the record versions
// that clients received.
//
// Each record has a version. As long as no write is lost, each write increases the
// version by one. The package uses only these versions and the clients' clocks. It
// does not use what the target reports about its replicas.
//
// Judge and Resolve are pure functions. A Recorder collects the outcomes for them
// and belongs to one goroutine. The usual order of calls: Record for every outcome
// of a step, then EndStep, and Written at the end of the cell. A Recorder keeps at
// most 40 bytes for each acknowledged write of the cell, and 40 bytes for each op
// on a record until the end of the step.
//
// Times are nanoseconds on the clock of the cell. The package does no I/O.
package history

import (
	"cmp"
	"maps"
	"slices"
)

// Observation is one acknowledged write or one read of a record.
type Observation struct {
	Write   bool
	Cached  bool  // a read that a cache answered
	User    int   // virtual user, -1 = none
	Sent    int64 // when the request was handed to a connection
	Done    int64 // when the response was complete
	Version int64 // version read, or after the write; 0 = the target did not find the record
}

// State summarizes the earlier ops on one record. The zero value means that there
// were none.
type State struct {
	// marks are the acknowledged writes with a higher version than every write that
	// was acknowledged before. So both fields increase from mark to mark.
	marks []mark
	// own is the highest version acknowledged to each virtual user.
	own map[int]int64
}

// mark is an acknowledged version and the time of the acknowledgement.
type mark struct{ done, version int64 }

// StaleRead is a read that returned an older version than one acknowledged before
// the read was sent.
type StaleRead struct {
	// AgeNS is the time from the acknowledgement of the first newer version to the
	// sending of the read. If replicas lag by L, it is at most L plus network delays.
	// After an acknowledged write is lost, reads stay stale until new writes reach its
	// version. Their ages then grow with the length of the run.
	AgeNS int64
	// OwnWrite says that the reader wrote a newer version himself, and that write
	// was acknowledged: the read violates read-your-writes.
	OwnWrite bool
	// Cached says that a cache answered, not the database.
	Cached bool
}

// Verdict is the result for the reads of one record.
type Verdict struct {
	Reads int64 // reads that could be judged
	Hits  int64 // judged reads that a cache answered
	Stale []StaleRead
}

// Judge finds the stale reads among the ops on one record. The ops may be in any
// order; past holds the earlier ones. A read is stale if a newer version was
// acknowledged before the read was sent. If a write and a read overlap in time,
// both orders are correct, and the read is not stale. A read that did not find the
// record is stale if a write to the record was acknowledged before; otherwise it
// is not judged.
//
// Judge does not know the writes of clients outside this run, writes without an
// acknowledgement, and records whose name is only in the response, such as uploads.
func Judge(past State, seen []Observation) (Verdict, State) {
	var writes, reads []Observation
	for _, s := range seen {
		if s.Write {
			writes = append(writes, s)
		} else {
			reads = append(reads, s)
		}
	}
	slices.SortStableFunc(writes, func(a, b Observation) int { return cmp.Compare(a.Done, b.Done) })
	slices.SortStableFunc(reads, func(a, b Observation) int { return cmp.Compare(a.Sent, b.Sent) })
	now := State{marks: slices.Clone(past.marks), own: maps.Clone(past.own)}
	var v Verdict
	for _, read := range reads {
		for len(writes) > 0 && writes[0].Done < read.Sent {
			now.acknowledge(writes[0])
			writes = writes[1:]
		}
		if read.Version == 0 && len(now.marks) == 0 {
			continue // it is unknown whether the record should exist
		}
		v.Reads++
		if read.Cached {
			v.Hits++
		}
		if age, stale := now.age(read); stale {
			ownWrite := read.User >= 0 && now.own[read.User] > read.Version
			v.Stale = append(v.Stale, StaleRead{AgeNS: age, OwnWrite: ownWrite, Cached: read.Cached})
		}
	}
	for _, write := range writes {
		now.acknowledge(write)
	}
	return v, now
}

// acknowledge adds a write. Add writes in the order of their acknowledgements.
func (p *State) acknowledge(w Observation) {
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

// age returns the time since the first newer version was acknowledged. It reports
// false if there is none.
func (p *State) age(read Observation) (ns int64, stale bool) {
	byVersion := func(m mark, version int64) int { return cmp.Compare(m.version, version) }
	i, _ := slices.BinarySearchFunc(p.marks, read.Version+1, byVersion)
	if i == len(p.marks) {
		return 0, false
	}
	return read.Sent - p.marks[i].done, true
}
