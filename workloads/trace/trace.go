// Package trace reads access logs and recorded traces, and replays them: each
// request becomes an op, sent at its logged time, or faster or slower (Replay).
//
// Read takes a reader; the package opens no files. A Trace is immutable and safe
// for concurrent use. A broken line never ends a read: broken lines are counted
// by reason. Lines that are out of order by at most 65,536 requests are sorted by their times;
// requests that were logged even later are counted and left out.
//
// The format is that of the first line that can be read in one:
//
//   - the common log format with any further columns, as of Apache, nginx, Caddy and Traefik; a virtual host may
//     precede it
//   - the default text format of Envoy and Istio
//   - the W3C extended log file format of IIS and CloudFront
//   - one JSON object per line, as of Caddy, Traefik, Envoy, or with names of the user as in nginx and Apache
//   - CSV with a header that names the columns
//
// A line with named columns may describe its request more than once. The first of these counts:
//
//   - the request line as the client sent it, with method and target: request, request_line
//   - the target as the client sent it, with its query: request_uri, request.uri, RequestPath, url.original, request
//   - a path: path, url, uri, url.path, cs-uri-stem; with the query, if it is in a column of its own: query_string,
//     args, query, url.query, cs-uri-query
//
// The time is that of the start of the request (start_time, StartUTC) before that of its line (time, timestamp,
// @timestamp, ts, msec, time_iso8601, time_local). The client is the one that the server logged (client, client_ip,
// remote_addr, ClientHost, source.ip, c-ip), and only without these a forwarded one (x_forwarded_for); ports are
// ignored. Without a method the request is a GET. Names may be written in any case.
//
// Times are durations since the first request, in whole nanoseconds. Logs
// contain no bodies, so the ops have none.
//
// The requests are kept in a Spool, such as a temporary file, so the memory of a trace does not grow with its log: it
// needs about 50 MB while a log is read, and 24 bytes for each 1,000 requests afterwards.
package trace

import (
	"errors"
	"fmt"
	"iter"
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
	Path   string // path and query, encoded for a request line
	Client int    // index of the client address, in order of first appearance
}

// Stats describes the input of a trace.
type Stats struct {
	Lines          int64            // all lines except empty lines and the CSV header
	Records        int64            // requests
	Broken         map[string]int64 // lines that are not requests, by reason
	OutOfOrder     int64            // requests logged after a request with a later time
	DuplicateTimes int64            // requests with the same time as the previous one
	Clients        int              // different addresses, counted up to 1,048,576
	Paths          int              // different paths, likewise
	Span           time.Duration    // from the first to the last request
}

// BrokenLines returns the number of lines that are not requests.
func (s Stats) BrokenLines() int64 {
	var sum int64
	for _, n := range s.Broken {
		sum += n
	}
	return sum
}

// Trace is a list of requests in the order of their times.
type Trace struct {
	name     string
	requests *blocks
	spread   bool // requests are distributed over their second
	stats    Stats
}

// Name returns the name of the trace.
func (t *Trace) Name() string { return t.name }

// Len returns the number of requests.
func (t *Trace) Len() uint64 { return t.requests.count }

// Record returns request n of Len, in the order of their times.
func (t *Trace) Record(n uint64) Record { return t.shown(t.requests.record(n)) }

// All returns the requests in the order of their times.
func (t *Trace) All() iter.Seq[Record] {
	return func(yield func(Record) bool) {
		for r := range t.requests.all() {
			if !yield(t.shown(r)) {
				return
			}
		}
	}
}

// shown returns a request with the time at which it is replayed.
func (t *Trace) shown(r stored) Record {
	if t.spread {
		r.At += r.within
	}
	return r.Record
}

// Stats returns the statistics of the input.
func (t *Trace) Stats() Stats { return t.stats }

// Keep returns a trace of the requests for which skip returns "", in the same spool. Their times do
// not change. The map has the number of the other requests by reason.
func (t *Trace) Keep(skip func(Record) (reason string)) (*Trace, map[string]int64, error) {
	kept := &Trace{name: t.name, requests: t.requests.next(), spread: t.spread, stats: t.stats}
	skipped := map[string]int64{}
	for r := range t.requests.all() {
		if reason := skip(t.shown(r)); reason != "" {
			skipped[reason]++
			continue
		}
		if err := kept.requests.add(r); err != nil {
			return nil, nil, fmt.Errorf("trace %s: %w", t.name, err)
		}
	}
	if err := kept.requests.flush(); err != nil {
		return nil, nil, fmt.Errorf("trace %s: %w", t.name, err)
	}
	return kept, skipped, nil
}

// Replay configures how a schedule changes the logged times.
type Replay struct {
	Speed  float64       // factor: 2 sends twice as fast as logged
	MaxGap time.Duration // longer gaps are shortened to this, before Speed applies; 0 = no limit
	Loop   bool          // after the last request start again with the first, without end
}

// Limits of Replay.Speed.
const (
	minSpeed = 0.001
	maxSpeed = 1_000_000
)

// Validate returns an error when a value is out of range.
func (r Replay) Validate() error {
	switch {
	case !(r.Speed >= minSpeed && r.Speed <= maxSpeed): // NaN fails both comparisons, so it is refused too
		return fmt.Errorf("speed %v: want %v to %d times the logged one", r.Speed, minSpeed, maxSpeed)
	case r.MaxGap < 0:
		return fmt.Errorf("max gap %v: want 0 (gaps as logged) or more", r.MaxGap)
	}
	return nil
}

// Schedule returns the schedule with the intended time of each request.
func (t *Trace) Schedule(r Replay) (pace.Schedule, error) {
	if err := r.Validate(); err != nil {
		return nil, fmt.Errorf("replay %s: %w", t.name, err)
	}
	if t.Len() == 0 {
		return nil, fmt.Errorf("replay %s: it has no requests to send", t.name)
	}
	s := &schedule{trace: t, replay: r}
	place := before{last: t.Record(0).At}
	for number := range t.requests.ends {
		s.blocks = append(s.blocks, place)
		times := s.times(number, &place)
		s.first = append(s.first, times[0])
	}
	n := t.Len()
	end := s.within(n - 1)
	s.round = end + time.Second
	if n > 1 {
		s.round = end + end/time.Duration(n-1) // one mean gap between the rounds
	}
	// A round of almost no duration would repeat the requests at an unlimited rate.
	if r.Loop && float64(n) > pace.MaxRate*s.round.Seconds() {
		return nil, fmt.Errorf("replay %s in a loop: %d requests within %v are more than %d per second\n"+
			"want a lower speed, a longer max gap, or no loop", t.name, n, s.round, int64(pace.MaxRate))
	}
	return s, nil
}

// Length returns the shortest duration of a step that contains the first round of
// s, a schedule of this trace: the time of its last request plus 1 ns.
func (t *Trace) Length(s pace.Schedule) time.Duration { return s.At(t.Len()-1) + 1 }

// schedule computes the intended times of a trace, block by block. It implements pace.Schedule.
type schedule struct {
	trace  *Trace
	replay Replay
	blocks []before        // by block
	first  []time.Duration // intended time of the first request, by block
	round  time.Duration   // from the start of one round to the next
	recent recent[[]time.Duration]
}

// before is what comes before a block: the sum of the gaps, and the logged time of the last request.
type before struct{ sum, last time.Duration }

// times returns the intended times of a block in the first round, and moves to the next block.
//
// The gaps are summed in whole nanoseconds, and each sum is divided by the speed
// once. So rounding errors do not accumulate: each time is within a nanosecond
// of the exact one.
func (s *schedule) times(number int, place *before) (times []time.Duration) {
	for _, r := range s.trace.requests.block(number) {
		at := s.trace.shown(r).At
		gap := at - place.last
		if s.replay.MaxGap > 0 {
			gap = min(gap, s.replay.MaxGap)
		}
		place.sum, place.last = place.sum+gap, at
		times = append(times, time.Duration(math.Round(float64(place.sum)/s.replay.Speed)))
	}
	return times
}

// block returns the intended times of a block in the first round.
func (s *schedule) block(number int) []time.Duration {
	return s.recent.get(number, func() []time.Duration {
		place := s.blocks[number]
		return s.times(number, &place)
	})
}

// within returns the intended time of a request of the first round.
func (s *schedule) within(n uint64) time.Duration { return s.block(int(n / blockSize))[n%blockSize] }

// before returns the number of requests of the first round that are due before a time.
func (s *schedule) before(d time.Duration) uint64 {
	number := sort.Search(len(s.first), func(i int) bool { return s.first[i] >= d }) - 1
	if number < 0 {
		return 0
	}
	times := s.block(number)
	return uint64(number)*blockSize + uint64(sort.Search(len(times), func(i int) bool { return times[i] >= d }))
}

// forever is the time of a request that is never sent.
const forever = time.Duration(math.MaxInt64)

// At implements pace.Schedule.
func (s *schedule) At(n uint64) time.Duration {
	size := s.trace.Len()
	if n < size {
		return s.within(n)
	}
	if !s.replay.Loop || n/size >= uint64(forever/s.round)-1 {
		return forever
	}
	return time.Duration(n/size)*s.round + s.within(n%size)
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
	return uint64(rounds)*s.trace.Len() + s.before(d-rounds*s.round)
}

// String implements pace.Schedule.
func (s *schedule) String() string {
	text := "trace " + s.trace.name + " speed " + strconv.FormatFloat(s.replay.Speed, 'g', -1, 64)
	if s.replay.MaxGap > 0 {
		text += " max gap " + s.replay.MaxGap.String()
	}
	if s.replay.Loop {
		text += " in a loop"
	}
	return text
}

// Workload returns a workload that sends the requests unchanged, to any server.
// Op n is request n; after the last request the first follows again. Each client
// address becomes a virtual user, and the driver keeps the cookies of each user
// separately. The class of an op is its method in lower case.
func (t *Trace) Workload() (workloads.Workload, error) {
	if t.Len() == 0 {
		return nil, errors.New("trace " + t.name + ": it has no requests to send")
	}
	w := &pathWorkload{trace: t}
	for r := range t.All() {
		w.clients = max(w.clients, r.Client+1)
		if class := classOf(r); !slices.Contains(w.classes, class) {
			w.classes = append(w.classes, class)
		}
	}
	return w, nil
}

// pathWorkload is a workload that sends the paths of a trace unchanged.
type pathWorkload struct {
	trace   *Trace
	clients int
	classes []workloads.Class
}

// classOf returns the class of a request: its method in lower case.
func classOf(r Record) workloads.Class { return workloads.Class(strings.ToLower(r.Method)) }

func (w *pathWorkload) Name() string { return w.trace.name }
func (w *pathWorkload) Users() int   { return w.clients }

// Classes returns one class for each method in the trace.
func (w *pathWorkload) Classes() []workloads.Class { return w.classes }

func (w *pathWorkload) Op(n uint64) workloads.Op {
	r := w.trace.Record(n % w.trace.Len())
	return workloads.Op{
		Index: n, Class: classOf(r), Method: r.Method, Path: r.Path, User: r.Client, Write: workloads.Writes(r.Method),
	}
}
