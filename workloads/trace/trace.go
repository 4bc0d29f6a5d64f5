// Package trace reads access logs and recorded traces, and replays them: each
// request becomes an op, sent at its logged time, or faster or slower (Replay).
//
// Read takes a reader; the package opens no files. A Trace is immutable and safe
// for concurrent use. A broken line never ends a read: broken lines are counted
// by reason. Lines that are out of order are sorted by their times.
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
// contain no bodies, so the ops have none. A trace is held in memory: about 60 bytes for each request, and each
// distinct path and client once.
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
	Clients        int              // different addresses
	Paths          int              // different paths
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
	name    string
	records []Record
	stats   Stats
}

// Name returns the name of the trace.
func (t *Trace) Name() string { return t.name }

// Records returns the requests in the order of their times. The slice is shared:
// callers must not modify it.
func (t *Trace) Records() []Record { return t.records }

// Stats returns the statistics of the input.
func (t *Trace) Stats() Stats { return t.stats }

// Keep returns a trace of the requests for which skip returns "". Their times do
// not change. The map has the number of the other requests by reason.
func (t *Trace) Keep(skip func(Record) (reason string)) (*Trace, map[string]int64) {
	kept, skipped := &Trace{name: t.name, stats: t.stats}, map[string]int64{}
	for _, r := range t.records {
		if reason := skip(r); reason != "" {
			skipped[reason]++
			continue
		}
		kept.records = append(kept.records, r)
	}
	return kept, skipped
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
	if len(t.records) == 0 {
		return nil, fmt.Errorf("replay %s: it has no requests to send", t.name)
	}
	s := &schedule{name: t.name, replay: r, at: make([]time.Duration, len(t.records))}
	// The gaps are summed in whole nanoseconds, and each sum is divided by the speed
	// once. So rounding errors do not accumulate: each time is within a nanosecond
	// of the exact one.
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
func (t *Trace) Length(s pace.Schedule) time.Duration { return s.At(uint64(len(t.records)-1)) + 1 }

// schedule holds the intended times of a trace. It implements pace.Schedule.
type schedule struct {
	name   string
	replay Replay
	at     []time.Duration // of the first round
	round  time.Duration   // from the start of one round to the next
}

// forever is the time of a request that is never sent.
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

// Workload returns a workload that sends the requests unchanged, to any server.
// Op n is request n; after the last request the first follows again. Each client
// address becomes a virtual user, and the driver keeps the cookies of each user
// separately. The class of an op is its method in lower case.
func (t *Trace) Workload() (workloads.Workload, error) {
	if len(t.records) == 0 {
		return nil, errors.New("trace " + t.name + ": it has no requests to send")
	}
	last := slices.MaxFunc(t.records, func(a, b Record) int { return a.Client - b.Client })
	return &pathWorkload{t, last.Client + 1}, nil
}

// pathWorkload is a workload that sends the paths of a trace unchanged.
type pathWorkload struct {
	trace   *Trace
	clients int
}

func (w *pathWorkload) Name() string { return w.trace.name }
func (w *pathWorkload) Users() int   { return w.clients }

// Classes returns one class for each method in the trace.
func (w *pathWorkload) Classes() (classes []workloads.Class) {
	for n := range w.trace.records {
		if class := w.Op(uint64(n)).Class; !slices.Contains(classes, class) {
			classes = append(classes, class)
		}
	}
	return classes
}

func (w *pathWorkload) Op(n uint64) workloads.Op {
	r := &w.trace.records[n%uint64(len(w.trace.records))]
	return workloads.Op{
		Index: n, Class: workloads.Class(strings.ToLower(r.Method)), Method: r.Method, Path: r.Path, User: r.Client,
		Write: workloads.Writes(r.Method),
	}
}
