package swap_test

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"

	"go.uber.org/goleak"

	"github.com/stagebench/stagebench/sut/swap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// Values are retired in order, each once nobody uses it or an earlier value.
func TestReplaceWaits(t *testing.T) { synctest.Test(t, replaceWaits) }

func replaceWaits(t *testing.T) {
	var v swap.Value[int]
	var retired []int
	retire := func(n int) { retired = append(retired, n) }
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := v.Replace(1, retire)(t.Context()); err != nil || len(retired) > 0 {
		t.Fatalf("the first value: %v, retired %v", err, retired)
	}
	first, done := v.Use()
	for _, next := range []int{2, 3} {
		if err := v.Replace(next, retire)(ended); !errors.Is(err, context.Canceled) {
			t.Errorf("replaced by %d while the first value is in use: %v", next, err)
		}
	}
	last, doneLast := v.Use()
	doneLast()
	synctest.Wait() // until nothing can retire a value any more
	if first != 1 || last != 3 || len(retired) > 0 {
		t.Errorf("used %d and %d, retired %v", first, last, retired)
	}
	done()
	if err := v.Replace(4, retire)(t.Context()); err != nil || !slices.Equal(retired, []int{1, 2, 3}) {
		t.Errorf("%v, retired %v", err, retired)
	}
}

// A value in use is never a retired one.
func TestUseDuringReplace(t *testing.T) {
	var v swap.Value[*atomic.Bool]
	retire := func(old *atomic.Bool) { old.Store(true) }
	_ = v.Replace(new(atomic.Bool), retire)(t.Context())
	stop := make(chan struct{})
	var users sync.WaitGroup
	for range 4 {
		users.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				value, done := v.Use()
				if value.Load() {
					t.Error("a retired value is in use")
				}
				done()
				runtime.Gosched()
			}
		})
	}
	for range 100 {
		if err := v.Replace(new(atomic.Bool), retire)(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	users.Wait()
}
