package budget

import (
	"math"
	"testing"
	"time"
)

func TestQuotaFor(t *testing.T) {
	t.Parallel()
	us := func(n int) time.Duration { return time.Duration(n) * time.Microsecond }
	for cores, want := range map[float64]Quota{
		0.1:  {us(4000), us(40_000)},
		0.3:  {us(4000), us(13_334)},
		0.2:  {us(4000), us(20_000)},
		0.15: {us(4000), us(26_667)},
		0.05: {us(2500), us(50_000)},
		0.02: {us(1000), us(50_000)},
		0.01: {us(1000), us(100_000)},
		2:    {us(10_000), us(5000)},
		32:   {us(160_000), us(5000)},
	} {
		if got, err := QuotaFor(cores); err != nil || got != want {
			t.Errorf("%v cores: %+v, %v; want %+v", cores, got, err, want)
		}
	}
}

func TestQuotaForStaysWithinLimits(t *testing.T) {
	t.Parallel()
	for cores := 0.01; cores < 64; cores *= 1.03 {
		q, err := QuotaFor(cores)
		if err != nil {
			t.Fatalf("%v cores: %v", cores, err)
		}
		if q.Quota < time.Millisecond || q.Period < time.Millisecond || q.Period > 100*time.Millisecond {
			t.Errorf("%v cores: the kernel does not accept %+v", cores, q)
		}
		if got := float64(q.Quota) / float64(q.Period); math.Abs(got/cores-1) > 1e-3 {
			t.Errorf("%v cores: %+v is %v cores", cores, q, got)
		}
	}
}

func TestQuotaForRefuses(t *testing.T) {
	t.Parallel()
	for _, cores := range []float64{0, -1, math.NaN(), math.Inf(1), 0.009} {
		if q, err := QuotaFor(cores); err == nil {
			t.Errorf("%v gave %+v", cores, q)
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
