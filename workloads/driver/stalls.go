package driver

import (
	"time"

	"github.com/stagebench/stagebench/results"
)

const (
	// heartbeat is the time between two checks whether this process runs.
	heartbeat = 5 * time.Millisecond
	// minStall is the least delay of a check that counts as a stall.
	minStall = time.Millisecond
)

// watchStalls finds the times in which this process did not run: it sleeps again and again,
// and records when a sleep ended late. The lag of the ops does not show all of them. A client
// that stalls while all its connections are in use is late only in reading the responses.
func (f *Flight) watchStalls() {
	defer close(f.watched)
	for {
		select {
		case <-f.delivered:
			return
		default:
		}
		expected := f.Now() + int64(heartbeat)
		sleepUntil(f.Now, expected)
		if late := f.Now() - expected; late >= int64(minStall) {
			f.stalls = append(f.stalls, results.Stall{AtNS: expected, LengthNS: late})
		}
	}
}
