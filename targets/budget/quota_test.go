package budget

import (
	"math"
	"testing"
	"time"
)

func TestQuotaFor(t *testing.T) {
	t.Parallel()
	us := func(n int) time.Duration { return time.Duration(n) * time.Microsecond }
	for _, c := range []struct {
		cores, scale, burst float64
		want                Quota
	}{
		{0.1, 1, 0, Quota{us(1000), us(10_000), 0}},
		{0.3, 1, 0, Quota{us(1500), us(5000), 0}},
		{0.2, 1, 0, Quota{us(1000), us(5000), 0}},
		{0.15, 1, 0, Quota{us(1000), us(6667), 0}},
		{0.05, 1, 0, Quota{us(1000), us(20_000), 0}},
		{0.01, 1, 0, Quota{us(1000), us(100_000), 0}},
		{2, 1, 0, Quota{us(10_000), us(5000), 0}},
		{32, 1, 0, Quota{us(160_000), us(5000), 0}},
		// Halving the period halves the quota, down to the kernel's limits.
		{1, 0.5, 0, Quota{us(2500), us(2500), 0}},
		{0.3, 0.5, 0, Quota{us(1000), us(3334), 0}},
		{0.1, 0.5, 0, Quota{us(1000), us(10_000), 0}},
		{4, 0.01, 0, Quota{us(4000), us(1000), 0}},
		{0.1, 2, 0, Quota{us(2000), us(20_000), 0}},
		{0.1, 100, 0, Quota{us(10_000), us(100_000), 0}},
		{0.1, 1, 1, Quota{us(1000), us(10_000), us(1000)}},
		{0.3, 1, 0.5, Quota{us(1500), us(5000), us(750)}},
	} {
		got, err := QuotaFor(c.cores, c.scale, c.burst)
		if err != nil || got != c.want {
			t.Errorf("%v cores, scale %v, burst %v: %+v, %v; want %+v", c.cores, c.scale, c.burst, got, err, c.want)
		}
	}
}

func TestQuotaForHoldsItsLimits(t *testing.T) {
	t.Parallel()
	for cores := 0.01; cores < 64; cores *= 1.03 {
		for _, scale := range []float64{0.1, 0.5, 1, 2, 50} {
			q, err := QuotaFor(cores, scale, 1)
			if err != nil {
				t.Fatalf("%v cores: %v", cores, err)
			}
			if q.Quota < time.Millisecond || q.Period < time.Millisecond || q.Period > 100*time.Millisecond || q.Burst > q.Quota {
				t.Errorf("%v cores, scale %v: %+v is outside of what the kernel takes", cores, scale, q)
			}
			if got := float64(q.Quota) / float64(q.Period); math.Abs(got/cores-1) > 1e-3 {
				t.Errorf("%v cores, scale %v: %+v is %v cores", cores, scale, q, got)
			}
		}
	}
}

func TestQuotaForRefuses(t *testing.T) {
	t.Parallel()
	for _, c := range [][3]float64{
		{0, 1, 0},
		{-1, 1, 0},
		{math.NaN(), 1, 0},
		{math.Inf(1), 1, 0},
		{0.009, 1, 0},
		{1, 0, 0},
		{1, math.NaN(), 0},
		{1, 1, -0.1},
		{1, 1, 1.1},
	} {
		if q, err := QuotaFor(c[0], c[1], c[2]); err == nil {
			t.Errorf("%v gave %+v", c, q)
		}
	}
}

func TestProcs(t *testing.T) {
	t.Parallel()
	for cores, want := range map[float64]int{0: 0, 0.1: 1, 1: 1, 1.01: 2, 4: 4} {
		if got := Procs(cores); got != want {
			t.Errorf("%v cores: %d, want %d", cores, got, want)
		}
	}
}
