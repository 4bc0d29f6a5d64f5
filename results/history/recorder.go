package history

import (
	"net/http"
	"slices"
	"strings"

	"github.com/stagebench/stagebench/results"
)

// Recorder collects the reads and writes of single records from outcomes.
type Recorder struct {
	records map[string]*record
	touched []*record // records with ops in the current step
}

// record is one record over all steps of a cell.
type record struct {
	past    State
	seen    []Observation // ops of the current step, in its time
	written Written
}

// New returns an empty recorder for one cell.
func New() *Recorder { return &Recorder{records: map[string]*record{}} }

// Record adds one outcome of the current step. It ignores ops that are not about a
// single record, and responses that say nothing about the record.
func (r *Recorder) Record(o results.Outcome) {
	if o.Record == "" || o.Sent < 0 {
		return
	}
	answered := o.Fate == results.OK || o.Fate == results.HTTPError
	shown := answered && o.Version > 0 && o.Status < http.StatusBadRequest
	gone := answered && !o.Write && o.Status == http.StatusNotFound
	unsure := o.Write && (!answered || o.Status >= http.StatusInternalServerError)
	if !shown && !gone && !unsure {
		return
	}
	found := r.records[o.Record]
	if found == nil {
		// The name is a substring of the op's path. Without the clone, it would keep
		// the path in memory.
		name := strings.Clone(o.Record)
		found = &record{written: Written{Record: name}}
		r.records[name] = found
	}
	if unsure {
		found.written.Ambiguous++
		return
	}
	if len(found.seen) == 0 {
		r.touched = append(r.touched, found)
	}
	seen := Observation{Write: o.Write, Cached: o.Cached, User: o.User, Sent: o.Sent, Done: o.Done, Version: o.Version}
	if gone {
		seen.Version = 0
	}
	found.seen = append(found.seen, seen)
}

// EndStep judges the reads of the step and ends the step. Start is the step's time
// 0 on the clock of the cell. EndStep calls stale for every stale read. The result
// does not contain the distributions of ages.
func (r *Recorder) EndStep(start int64, stale func(StaleRead)) results.Stale {
	var sum results.Stale
	for _, record := range r.touched {
		for i := range record.seen {
			record.seen[i].Sent += start
			record.seen[i].Done += start
		}
		var v Verdict
		v, record.past = Judge(record.past, record.seen)
		sum.Reads += v.Reads
		sum.Hits += v.Hits
		sum.Stale += int64(len(v.Stale))
		for _, read := range v.Stale {
			stale(read)
			if read.OwnWrite {
				sum.RYWViolations++
			}
			if read.Cached {
				sum.StaleHits++
			}
		}
		record.remember()
	}
	r.touched = r.touched[:0]
	return sum
}

// remember keeps the data of the step that Resolve needs, and drops the rest.
func (r *record) remember() {
	w := &r.written
	for _, s := range r.seen {
		existed := s.Version
		if s.Write {
			w.Acks = append(w.Acks, Ack{Sent: s.Sent, Done: s.Done, Version: s.Version})
			existed-- // the version before the write
		}
		if existed > 0 && (w.Lowest == 0 || existed < w.Lowest) {
			w.Lowest = existed
		}
	}
	r.seen = nil
}

// Written lists the records with acknowledged or ambiguous writes, sorted by name.
func (r *Recorder) Written() []Written {
	var all []Written
	for _, record := range r.records {
		if len(record.written.Acks) > 0 || record.written.Ambiguous > 0 {
			all = append(all, record.written)
		}
	}
	slices.SortFunc(all, func(a, b Written) int { return strings.Compare(a.Record, b.Record) })
	return all
}
