package pace_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/stagebench/stagebench/workloads/pace"
)

func constant(t testing.TB, rate float64) pace.Schedule {
	t.Helper()
	s, err := pace.Constant(rate)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func poisson(t testing.TB, rate float64, seed uint64) pace.Schedule {
	t.Helper()
	s, err := pace.Poisson(rate, seed)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func rates() []float64 {
	return []float64{pace.MinRate, 1, 3, 7.3, 500, 1000.0 / 3, 99_999.99, pace.MaxRate}
}

// every runs a test on both kinds of schedule at every rate.
func every(t *testing.T, test func(t *testing.T, rate float64, s pace.Schedule)) {
	for _, rate := range rates() {
		for _, s := range []pace.Schedule{constant(t, rate), poisson(t, rate, 7)} {
			t.Run(s.String(), func(t *testing.T) {
				t.Parallel()
				test(t, rate, s)
			})
		}
	}
}

// indexes returns indexes of ops from the whole range, among them the borders of
// blocks.
func indexes() []uint64 {
	var ns []uint64
	for _, at := range []uint64{0, 510, 1022, 131_070, 999_999_998, 1<<40 - 2, 1<<44 - 3} {
		for i := range uint64(6) {
			ns = append(ns, at+i)
		}
	}
	return append(ns, 1<<50, math.MaxUint64-1, math.MaxUint64)
}

func TestNeverDecreases(t *testing.T) {
	t.Parallel()
	every(t, func(t *testing.T, _ float64, s pace.Schedule) {
		last := time.Duration(0)
		check := func(n uint64) {
			at := s.At(n)
			if at < last {
				t.Fatalf("op %d is at %d ns, an earlier op is at %d ns", n, at, last)
			}
			last = at
		}
		for n := range uint64(5000) {
			check(n)
		}
		last = 0
		for _, n := range indexes() {
			check(n)
		}
	})
}

func TestCountIsTheInverseOfAt(t *testing.T) {
	t.Parallel()
	every(t, func(t *testing.T, _ float64, s pace.Schedule) {
		for _, n := range indexes() {
			at := s.At(n)
			// Several ops may have the same time. Count(at) counts none of them.
			if before := s.Count(at); before > n {
				t.Errorf("op %d is at %v, but Count(%v) = %d", n, at, at, before)
			}
			if at == math.MaxInt64 {
				continue
			}
			if with := s.Count(at + 1); with <= n {
				t.Errorf("op %d is at %v, but only %d ops are before %v", n, at, with, at+1)
			}
		}
		random := rand.New(rand.NewPCG(1, 2))
		for range 200 {
			d := time.Duration(random.Int64N(1 << (10 + random.IntN(50))))
			n := s.Count(d)
			if n > 0 && s.At(n-1) >= d {
				t.Errorf("Count(%d ns) = %d, but op %d is at %d ns", d, n, n-1, s.At(n-1))
			}
			if s.At(n) < d {
				t.Errorf("Count(%d ns) = %d, but op %d is at %d ns too", d, n, n, s.At(n))
			}
		}
		for _, d := range []time.Duration{0, -1, math.MinInt64} {
			if n := s.Count(d); n != 0 {
				t.Errorf("Count(%d) = %d, want 0", d, n)
			}
		}
	})
}

func TestRateIsKept(t *testing.T) {
	t.Parallel()
	every(t, func(t *testing.T, rate float64, s pace.Schedule) {
		for _, ops := range []float64{1e4, 1e6, 1e8} {
			d := time.Duration(ops / rate * 1e9)
			// The variance of a Poisson count is ops. The bound is five standard deviations.
			if n := float64(s.Count(d)); math.Abs(n-ops) > 5*math.Sqrt(ops) {
				t.Errorf("%v has %.0f ops, want about %.0f", d, n, ops)
			}
		}
	})
}

func TestConcurrentUse(t *testing.T) {
	t.Parallel()
	every(t, func(t *testing.T, rate float64, s pace.Schedule) {
		fresh := poisson(t, rate, 7)
		if s.String() != fresh.String() {
			fresh = constant(t, rate)
		}
		const ops = 20_000
		want := make([]time.Duration, ops)
		for n := range want {
			want[n] = fresh.At(uint64(n))
		}
		var workers sync.WaitGroup
		for worker := range 4 {
			workers.Go(func() {
				for i := range ops {
					n := (i + worker*97) % ops
					if got := s.At(uint64(n)); got != want[n] {
						t.Errorf("op %d is at %v, for a single caller at %v", n, got, want[n])
						return
					}
				}
				if got := s.Count(want[ops-1] + 1); got < ops {
					t.Errorf("Count = %d, want at least %d", got, ops)
				}
			})
		}
		workers.Wait()
	})
}

func TestRatesOutOfRange(t *testing.T) {
	t.Parallel()
	for _, rate := range []float64{
		0, -1, 0.09, 1_000_001, math.NaN(), math.Inf(1), math.Inf(-1), math.SmallestNonzeroFloat64,
	} {
		_, constantErr := pace.Constant(rate)
		_, poissonErr := pace.Poisson(rate, 1)
		for _, err := range []error{constantErr, poissonErr} {
			if err == nil {
				t.Errorf("rate %v was accepted", rate)
			}
		}
	}
	_, err := pace.Constant(0)
	if want := "rate 0: want 0.1 to 1000000 ops per second"; err.Error() != want {
		t.Errorf("error %q, want %q", err, want)
	}
}

func TestStrings(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		s    pace.Schedule
		want string
	}{
		{constant(t, 500), "constant 500/s"},
		{constant(t, 0.1), "constant 0.1/s"},
		{poisson(t, 1_000_000, 7), "poisson 1000000/s seed 7"},
	} {
		if got := test.s.String(); got != test.want {
			t.Errorf("String() = %q, want %q", got, test.want)
		}
	}
}

func ExampleConstant() {
	schedule, err := pace.Constant(400)
	if err != nil {
		fmt.Println(err)
		return
	}
	fmt.Println(schedule)
	fmt.Println("op 3 is meant to start at", schedule.At(3))
	fmt.Println("10 s have", schedule.Count(10*time.Second), "ops")
	// Output:
	// constant 400/s
	// op 3 is meant to start at 7.5ms
	// 10 s have 4000 ops
}

func BenchmarkAt(b *testing.B) {
	for _, s := range []pace.Schedule{constant(b, 500), poisson(b, 500, 7)} {
		b.Run(s.String(), func(b *testing.B) {
			b.ReportAllocs()
			var n uint64
			for b.Loop() {
				s.At(n)
				n++
			}
		})
	}
}

func BenchmarkAtFarAway(b *testing.B) {
	s := poisson(b, 500, 7)
	b.ReportAllocs()
	var n uint64
	for b.Loop() {
		s.At(n)
		n += 1 << 20
	}
}
