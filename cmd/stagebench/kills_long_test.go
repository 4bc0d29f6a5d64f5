//go:build long

package main

import (
	"testing"
	"time"
)

// TestEveryLossOfAHundredKillsIsReported kills primaries a hundred times for each engine and mode, at intervals from
// 0.7 s to 6 s, whatever the state of the other databases is. It takes about half an hour.
func TestEveryLossOfAHundredKillsIsReported(t *testing.T) {
	for name, knobs := range failovers() {
		t.Run(name, func(t *testing.T) {
			k := newKiller(t, knobs)
			for k.kills < 100 {
				interval := 700*time.Millisecond + time.Duration(k.random.Int64N(int64(5300*time.Millisecond)))
				select {
				case <-time.After(interval):
				case <-t.Context().Done():
				}
				// Kill refuses while the last victim is dead and not replaced yet.
				if primary, _ := k.databaseRoles(); k.Kill(primary) == nil {
					k.kills++
				}
			}
			k.judge(knobs["db.sync"])
		})
	}
}
