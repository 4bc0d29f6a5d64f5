package wan

import (
	"math/rand/v2"
	"sync"
	"testing"
	"time"
)

// Alarms of the system ring at the time of their last setting and not before it, in any order of settings. An alarm
// that was stopped or set again does not ring for its earlier time.
func TestAlarms(t *testing.T) {
	t.Parallel()
	clock, err := openAlarms()
	if err != nil {
		t.Fatal(err)
	}
	defer clock.close() // a second call does nothing
	var using sync.WaitGroup
	for i := range uint64(200) {
		using.Go(func() {
			random := rand.New(rand.NewPCG(1, i))
			a := clock.alarm()
			defer a.stop()
			for range 20 {
				a.in(time.Duration(random.IntN(1000)) * time.Microsecond)
				d := time.Duration(1000+random.IntN(3000)) * time.Microsecond
				began := time.Now()
				select {
				case <-a.in(d):
				case <-time.After(deadline):
					t.Errorf("no alarm %v after its time", deadline)
					return
				}
				if took := time.Since(began); took < d {
					t.Errorf("an alarm rang after %v, want %v or later", took, d)
				}
			}
		})
	}
	using.Wait()
	stopped, last := clock.alarm(), clock.alarm()
	rings := stopped.in(time.Millisecond)
	stopped.stop()
	<-last.in(2 * time.Millisecond)
	select {
	case <-rings:
		t.Error("a stopped alarm rang")
	default:
	}
	<-last.in(-time.Second) // a time that has passed rings at once
	clock.close()
}
