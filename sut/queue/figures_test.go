package queue

import (
	"testing"
	"testing/synctest"
	"time"
)

// The jobs at risk are those that were stored within the time between two writes to the disk, and never more than are
// stored. Until that time has passed, all of them are.
func TestAtRisk(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := &Monitor{unsynced: 10 * time.Second}
		step := func(d time.Duration, last uint64) {
			<-time.After(d)
			m.add(time.Now(), last)
		}
		check := func(stored int64, last uint64, want int64) {
			t.Helper()
			if got := m.atRisk(Figures{Stored: stored, LastSeq: last}); got != want {
				t.Errorf("%d stored, %d in all: %d at risk, want %d", stored, last, got, want)
			}
		}
		check(7, 7, 7)
		step(0, 100)
		step(5*time.Second, 150)
		check(30, 150, 30) // the broker started 5 s ago
		step(5*time.Second, 160)
		check(30, 160, 30) // 60 were stored in 10 s, 30 of them are not done
		check(500, 160, 60)
		step(5*time.Second, 160)
		check(500, 170, 20) // 150 at the begin of the interval
		always := &Monitor{}
		always.add(time.Now(), 3)
		if got := always.atRisk(Figures{Stored: 9, LastSeq: 9}); got != 0 {
			t.Errorf("%d at risk, want none: each job is on the disk", got)
		}
		if n := len(m.samples); n > 12 {
			t.Errorf("%d samples are kept", n)
		}
	})
}
