// Package freezer is an HTTP server that freezes on a fixed schedule. The response times
// of its clients are known exactly, so it can check the figures of any load generator.
//
// The server freezes for Frozen in the middle of every Period. A request that arrives
// during a freeze is answered when the freeze ends. With Frozen = 0.5 s and Period = 5 s
// the 95th percentile of the response time is 250 ms and the 99th is 450 ms, at any rate.
// A client that reports less has omitted some of the waiting.
package freezer

import (
	"encoding/json"
	"net/http"
	"slices"
	"sync"
	"time"
)

// LogPath is the path at which the server returns its Log as JSON.
const LogPath = "/freezer/log"

// Freezer is the server. The first period begins with the first request. It is safe for
// concurrent use.
type Freezer struct {
	Frozen, Period time.Duration

	mu      sync.Mutex
	start   time.Time
	done    []time.Duration // when each answer was sent, since start
	waiting []chan struct{} // requests that arrived during the freeze, in order of arrival
}

// Log reports when a freezer sent its answers.
type Log struct {
	StartUnixNS int64           `json:"start_unix_ns"` // begin of the first period
	Done        []time.Duration `json:"done"`          // when each answer was sent, since the start, sorted
}

// ServeHTTP answers as soon as the server is not frozen.
func (f *Freezer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path == LogPath {
		w.Header().Set("Content-Type", "application/json")
		_ = json.NewEncoder(w).Encode(f.log()) // fails only if the client has disconnected
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
	// Without a length the answer would be sent in two pieces, and the end would be late.
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
	// The answer counts as done after it was flushed.
	_ = http.NewResponseController(w).Flush()
	done := time.Since(start)
	f.mu.Lock()
	f.done = append(f.done, done)
	f.mu.Unlock()
}

// arrive registers a request. During a freeze it returns a channel that is closed when the
// request may be answered. Waiting requests are answered in order of arrival.
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

// left returns the remaining duration of the freeze at that time, or 0 outside a freeze.
func (f *Freezer) left(at time.Duration) time.Duration {
	begin := (f.Period - f.Frozen) / 2
	if phase := at % f.Period; phase >= begin && phase < begin+f.Frozen {
		return begin + f.Frozen - phase
	}
	return 0
}

// Exact returns the exact response time at a percentile if the server answers all waiting
// requests at the end of a freeze at once. Any time that this takes comes on top.
//
// An op that arrives u after the begin of the freeze waits Frozen-u. The ops of the freeze
// are the slowest ops of a period. So the share q of a period's ops is slower than the op
// at u = q*Period.
func (f *Freezer) Exact(percentile float64) time.Duration {
	return f.Frozen - time.Duration((1-percentile/100)*float64(f.Period))
}
