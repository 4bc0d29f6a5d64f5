package driver

import (
	"time"

	"github.com/stagebench/stagebench/results"
)

const (
	// heartbeat is the time between two checks whether this process runs.
	heartbeat = 10 * time.Millisecond
	// minStall is the least delay of a check that counts as a stall. The timers of an idle Go
	// process are late by up to two milliseconds.
	minStall = 3 * time.Millisecond
)

// watchStalls finds the times in which this process did not run: it sleeps again and again,
// and records when a sleep ended late. The lag of the ops does not show all of them. A client
// that stalls while all its connections are in use is late only in reading the responses.
//
// It must not sleep in a system call as sleepUntil does: in this time no other goroutine could
// use its processor, and the watch itself would make the client late.
func (f *Flight) watchStalls() {
	defer close(f.watched)
	timer := time.NewTimer(heartbeat)
	defer timer.Stop()
	for done := false; !done; {
		expected := f.Now() + int64(heartbeat)
		timer.Reset(heartbeat)
		select {
		case <-f.delivered:
			done = true
		case <-timer.C:
		}
		if late := f.Now() - expected; late >= int64(minStall) {
			f.stalls = append(f.stalls, results.Stall{AtNS: expected, LengthNS: late})
		}
	}
}
