package polltest_test

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stagebench/stagebench/internal/polltest"
)

// failing is a test that keeps its failure.
type failing struct {
	testing.TB
	text string
}

func (f *failing) Helper() {}

func (f *failing) Fatalf(format string, args ...any) {
	f.text = fmt.Sprintf(format, args...)
	panic(f) // ends Eventually, as Fatalf of a real test does
}

func TestEventually(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		begin := time.Now()
		after := func(d time.Duration) func() bool { return func() bool { return time.Since(begin) >= d } }
		polltest.Eventually(t, time.Second, 10*time.Millisecond, "a condition holds", after(95*time.Millisecond))
		if took := time.Since(begin); took != 100*time.Millisecond {
			t.Errorf("returned after %v, want 100ms", took)
		}
		f := &failing{TB: t}
		defer func() {
			if recover() != f || f.text != "not within 1s: the sun rises" {
				t.Errorf("failed with %q", f.text)
			}
		}()
		polltest.Eventually(f, time.Second, 10*time.Millisecond, "the sun rises", func() bool { return false })
		t.Error("a condition that never holds has passed")
	})
}
