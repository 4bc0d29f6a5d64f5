package pace_test

import (
	"math"
	"math/big"
	"testing"
	"time"
)

// TestConstantDoesNotDrift checks that the time of op n is n/rate, rounded to the
// nearest nanosecond. It computes the expected times with exact rational numbers.
func TestConstantDoesNotDrift(t *testing.T) {
	t.Parallel()
	for _, rate := range rates() {
		s := constant(t, rate)
		for _, n := range append(indexes(), 1_000_000_000, 1_000_000_007, 3_600_000_000) {
			want := new(big.Rat).SetFrac(new(big.Int).SetUint64(n), big.NewInt(1))
			want.Mul(want, new(big.Rat).SetInt64(1e9))
			want.Quo(want, new(big.Rat).SetFloat64(rate))
			want.Add(want, big.NewRat(1, 2))
			exact := new(big.Int).Quo(want.Num(), want.Denom())
			if !exact.IsInt64() {
				exact.SetInt64(math.MaxInt64)
			}
			if got := s.At(n); got != time.Duration(exact.Int64()) {
				t.Errorf("rate %v: op %d is at %d ns, want %d ns", rate, n, got, exact)
			}
		}
	}
}

func TestConstantAtABillion(t *testing.T) {
	t.Parallel()
	if got, want := constant(t, 500).At(1_000_000_000), 2_000_000*time.Second; got != want {
		t.Errorf("op 1e9 at 500/s is at %v, want %v", got, want)
	}
	if got, want := constant(t, 3).At(1_000_000_000), time.Duration(333_333_333_333_333_333); got != want {
		t.Errorf("op 1e9 at 3/s is at %d ns, want %d ns", got, want)
	}
}

// TestConstantCounts checks that a step of duration d has exactly rate*d ops.
func TestConstantCounts(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		rate float64
		d    time.Duration
		want uint64
	}{
		{500, 30 * time.Second, 15_000},
		{500, 30*time.Second + 1, 15_001},
		{3, time.Second, 3},
		{1_000_000, time.Hour, 3_600_000_000},
		{0.1, time.Minute, 6}, // 0.1 in binary is a little more than 0.1
		{0.7, 1000 * time.Second, 700},
		{1.1, 24 * time.Hour, 95_040},
		{0.5, time.Second, 1},
	} {
		if got := constant(t, test.rate).Count(test.d); got != test.want {
			t.Errorf("%v at %v/s has %d ops, want %d", test.d, test.rate, got, test.want)
		}
	}
}
