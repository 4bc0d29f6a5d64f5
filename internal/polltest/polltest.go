// Package polltest waits in tests for a condition that no event announces, such as the state
// of another process. It is for tests and conformance kits only.
package polltest

import (
	"testing"
	"time"
)

// Eventually polls until a condition holds. It ends the test if the condition does not hold
// within a time. what completes the sentence "not within 20s: ...". Call it on the goroutine
// of the test; holds runs there, too.
func Eventually(t testing.TB, within, every time.Duration, what string, holds func() bool) {
	t.Helper()
	poll := time.NewTicker(every)
	defer poll.Stop()
	for deadline := time.Now().Add(within); !holds(); <-poll.C {
		if time.Now().After(deadline) {
			t.Fatalf("not within %v: %s", within, what)
		}
	}
}
