// Package freezer is an HTTP server that stands still by the clock, so that the
// honesty of any load generator can be checked: the response times that its
// users felt are known exactly.
//
// It is frozen for Frozen in the middle of every Period; a request that arrives
// then is answered when the freeze is over. With Frozen = 0.5 s in every 5 s
// the 95th percentile of the response time is 250 ms and the 99th 450 ms,
// whatever the rate: a client that reports less has left something out.
package freezer

import (
	"encoding/json"
	"math"
	"net/http"
	"slices"
	"sync"
	"time"
)

// LogPath is where the server tells, as a JSON Log, what it has done.
const LogPath = "/freezer/log"

// Freezer is the server. Its periods begin with the first request. It is safe
// for concurrent use.
type Freezer struct {
	Frozen, Period time.Duration

	mu      sync.Mutex
	start   time.Time
	done    []time.Duration
	waiting []chan struct{} // those who came during the freeze, in order of arrival
}

// Log is what a freezer has done.
type Log struct {
	StartUnixNS int64           `json:"start_unix_ns"` // when its first period began
	Done        []time.Duration `json:"done"`          // when each answer had left, since the start, in order
}

// ServeHTTP answers as soon as the server is not frozen.
func (f *Freezer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == LogPath {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(f.log()) // the client has gone; there is nobody to tell
		return
	}
	start, thaw := f.arrive()
	if thaw != nil {
		select {
		case <-thaw:
		case <-r.Context().Done():
			return
		}
	}
	// Without a length the answer would leave in two pieces, and its end late.
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
	// The answer counts as given when it has left, not when it was decided on.
	_ = http.NewResponseController(w).Flush()
	f.mu.Lock()
	f.done = append(f.done, time.Since(start))
	f.mu.Unlock()
}

// arrive takes a request in. During a freeze it returns what tells the request
// that its turn has come: those who waited are served in order of arrival.
func (f *Freezer) arrive() (start time.Time, thaw <-chan struct{}) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.start.IsZero() {
		f.start = time.Now()
	}
	left := f.left(time.Since(f.start))
	if left == 0 {
		return f.start, nil
	}
	if len(f.waiting) == 0 {
		time.AfterFunc(left, f.thaw)
	}
	turn := make(chan struct{})
	f.waiting = append(f.waiting, turn)
	return f.start, turn
}

func (f *Freezer) thaw() {
	f.mu.Lock()
	waiting := f.waiting
	f.waiting = nil
	f.mu.Unlock()
	for _, turn := range waiting {
		close(turn)
	}
}

func (f *Freezer) log() Log {
	f.mu.Lock()
	defer f.mu.Unlock()
	slices.Sort(f.done)
	return Log{StartUnixNS: f.start.UnixNano(), Done: slices.Clone(f.done)}
}

// left is how long the freeze that holds at that time still lasts.
func (f *Freezer) left(at time.Duration) time.Duration {
	begin := (f.Period - f.Frozen) / 2
	if phase := at % f.Period; phase >= begin && phase < begin+f.Frozen {
		return begin + f.Frozen - phase
	}
	return 0
}

// DrainRate is the rate in requests/s at which a server that was offered rate
// requests/s worked the backlog of its first freeze off, by its own log. The
// schedule of the client began offset after the server's first period. It is
// NaN when the backlog was never worked off.
func (f *Freezer) DrainRate(log Log, rate float64, offset time.Duration) float64 {
	thaw := (f.Period-f.Frozen)/2 + f.Frozen
	before, _ := slices.BinarySearch(log.Done, thaw-f.Frozen/2)
	// The backlog is gone when as many answers have left as ops were intended.
	for i := before; i < len(log.Done); i++ {
		if at := log.Done[i]; float64(i+1) >= math.Floor(rate*(at-offset).Seconds()) {
			return float64(i+1-before) / max((at-thaw).Seconds(), 1e-6)
		}
	}
	return math.NaN()
}

// Exact is the response time at that percentile of users who arrive at rate
// requests/s and are served in order of arrival, when the backlog of a freeze
// is worked off at drain requests/s (infinite: at once). An op that arrives u
// into the freeze waits Frozen-u for the thaw, and then for the rate*u ops
// before it: Frozen - u*(1-rate/drain). The ops of the freeze are the slowest,
// so of a period's ops the share q is slower than the op at u = q*Period.
func (f *Freezer) Exact(percentile, rate, drain float64) time.Duration {
	u := (1 - percentile/100) * f.Period.Seconds()
	return time.Duration((f.Frozen.Seconds() - u*(1-rate/drain)) * 1e9)
}
