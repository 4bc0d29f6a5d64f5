// Package trace reads access logs and recorded traces, and replays them: the
// requests as ops, with the times at which they came.
//
// It reads what it is given (Read) and opens nothing; from then on a Trace is
// immutable and may be used by many goroutines. Broken lines never end a read:
// they are counted by reason. Lines that are out of order are sorted by their
// times.
//
// Times are durations since the first request, in whole nanoseconds. Logs carry
// no bodies, so neither do the ops.
package trace

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
)

// Record is one request.
type Record struct {
	At     time.Duration // since the first request of the trace
	Method string
	Path   string // path and query, fit to be sent
	Client int    // index of the client's address, by first appearance
}

// Stats says what a trace was made of.
type Stats struct {
	Lines          int64            // without empty ones and a CSV header
	Records        int64            // requests
	Broken         map[string]int64 // other lines, by reason
	OutOfOrder     int64            // requests that were logged after a later one
	DuplicateTimes int64            // requests at the very time of the one before
	Clients        int              // different addresses
	Paths          int              // different paths
	Span           time.Duration    // from the first to the last request
}

// BrokenLines is the number of lines that are no requests.
func (s Stats) BrokenLines() int64 {
	var sum int64
	for _, n := range s.Broken {
		sum += n
	}
	return sum
}

// Trace is requests in the order of their times.
type Trace struct {
	name    string
	records []Record
	stats   Stats
}

// Name is the trace's name.
func (t *Trace) Name() string { return t.name }

// Records returns the requests, in the order of their times. They are shared:
// nobody may change them.
func (t *Trace) Records() []Record { return t.records }

// Stats says what the trace was made of.
func (t *Trace) Stats() Stats { return t.stats }

// Keep returns a trace of the requests for which the reason to leave them out is
// empty, with their times as they are, and counts the others by reason.
func (t *Trace) Keep(leaveOut func(Record) (reason string)) (*Trace, map[string]int64) {
	kept, skipped := &Trace{name: t.name, stats: t.stats}, map[string]int64{}
	for _, r := range t.records {
		if reason := leaveOut(r); reason != "" {
			skipped[reason]++
			continue
		}
		kept.records = append(kept.records, r)
	}
	return kept, skipped
}

// Replay says how the times are changed.
type Replay struct {
	Speed  float64       // how many times faster than it was logged
	MaxGap time.Duration // longer gaps are shortened to it, before Speed; 0 = none is
	Loop   bool          // begin again at the end, for ever
}

// The speeds that a replay can have.
const (
	minSpeed = 0.001
	maxSpeed = 1_000_000
)

// Validate says what is wrong with a replay.
func (r Replay) Validate() error {
	switch {
	case !(r.Speed >= minSpeed && r.Speed <= maxSpeed): // so written that NaN is refused too
		return fmt.Errorf("speed %v: want %v to %d times the logged one", r.Speed, minSpeed, maxSpeed)
	case r.MaxGap < 0:
		return fmt.Errorf("max gap %v: want 0, for gaps as logged, or more", r.MaxGap)
	}
	return nil
}

// Schedule returns when the requests are meant to be sent.
func (t *Trace) Schedule(r Replay) (pace.Schedule, error) {
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("replay %s: %w", t.name, err)
	}
	if len(t.records) == 0 {
		return nil, fmt.Errorf("replay %s: there is no request to send", t.name)
	}
	s := &schedule{name: t.name, replay: r, at: make([]time.Duration, len(t.records))}
	// Summed as whole nanoseconds of the log and divided once, so that no rounding
	// adds up: the last time is within a nanosecond of the exact one.
	var sum time.Duration
	last := t.records[0].At
	for i, record := range t.records {
		gap := record.At - last
		if r.MaxGap > 0 {
			gap = min(gap, r.MaxGap)
		}
		sum, last = sum+gap, record.At
		s.at[i] = time.Duration(math.Round(float64(sum) / r.Speed))
	}
	end, n := s.at[len(s.at)-1], len(s.at)
	s.round = end + time.Second
	if n > 1 {
		s.round = end + end/time.Duration(n-1) // one mean gap before it begins again
	}
	// Requests of one moment, again and again, are no load but an endless number.
	if r.Loop && float64(n) > pace.MaxRate*s.round.Seconds() {
		return nil, fmt.Errorf("replay %s in a loop: %d requests within %v are more than %d per second\nwant a lower speed, a longer max gap, or no loop", t.name, n, s.round, int64(pace.MaxRate))
	}
	return s, nil
}

// Length is how long one round of a trace's schedule takes: until after its last
// request.
func (t *Trace) Length(s pace.Schedule) time.Duration { return s.At(uint64(len(t.records)-1)) + 1 }

// schedule is the times of a trace.
type schedule struct {
	name   string
	replay Replay
	at     []time.Duration // of the first round
	round  time.Duration   // from the start of one round to the next
}

// forever is the time of a request that never comes.
const forever = time.Duration(math.MaxInt64)

// At implements pace.Schedule.
func (s *schedule) At(n uint64) time.Duration {
	size := uint64(len(s.at))
	if n < size {
		return s.at[n]
	}
	if !s.replay.Loop || n/size >= uint64(forever/s.round)-1 {
		return forever
	}
	return time.Duration(n/size)*s.round + s.at[n%size]
}

// Count implements pace.Schedule.
func (s *schedule) Count(d time.Duration) uint64 {
	if d <= 0 {
		return 0
	}
	rounds := time.Duration(0)
	if s.replay.Loop {
		rounds = d / s.round
	}
	rest := d - rounds*s.round
	return uint64(rounds)*uint64(len(s.at)) + uint64(sort.Search(len(s.at), func(i int) bool { return s.at[i] >= rest }))
}

// String implements pace.Schedule.
func (s *schedule) String() string {
	text := "trace " + s.name + " speed " + strconv.FormatFloat(s.replay.Speed, 'g', -1, 64)
	if s.replay.MaxGap > 0 {
		text += " max gap " + s.replay.MaxGap.String()
	}
	if s.replay.Loop {
		text += " in a loop"
	}
	return text
}

// Workload returns the requests as they are, for the server that was asked them
// or any other one: its n-th op is the n-th request, and after the last one
// comes the first again. Each client address is a virtual user, whose cookies
// the driver keeps apart. The class of an op is its method in lower case.
func (t *Trace) Workload() (workloads.Workload, error) {
	if len(t.records) == 0 {
		return nil, errors.New("trace " + t.name + ": there is no request to send")
	}
	last := slices.MaxFunc(t.records, func(a, b Record) int { return a.Client - b.Client })
	return &paths{t, last.Client + 1}, nil
}

// paths is a trace as a workload.
type paths struct {
	trace   *Trace
	clients int
}

func (p *paths) Name() string { return p.trace.name }
func (p *paths) Users() int   { return p.clients }

// Classes lists the classes of its ops, one for each method that is in the trace.
func (p *paths) Classes() (classes []workloads.Class) {
	for n := range p.trace.records {
		if class := p.Op(uint64(n)).Class; !slices.Contains(classes, class) {
			classes = append(classes, class)
		}
	}
	return classes
}

func (p *paths) Op(n uint64) workloads.Op {
	r := &p.trace.records[n%uint64(len(p.trace.records))]
	return workloads.Op{
		Index: n, Class: workloads.Class(strings.ToLower(r.Method)), Method: r.Method, Path: r.Path, User: r.Client,
		Write: workloads.Writes(r.Method),
	}
}
