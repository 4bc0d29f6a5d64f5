package pace_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/stagebench/stagebench/workloads/pace"
)

// All statistics in this file use fixed seeds, so a test always passes or always
// fails. The bounds are those of a test at significance level 0.001.

// gaps returns the gaps before the ops from first to first+count-1, in units of
// their mean.
func gaps(s pace.Schedule, rate float64, first, count uint64) []float64 {
	var last time.Duration
	if first > 0 {
		last = s.At(first - 1)
	}
	all := make([]float64, count)
	for i := range all {
		at := s.At(first + uint64(i))
		all[i], last = (at-last).Seconds()*rate, at
	}
	return all
}

// checkExponential is the Kolmogorov-Smirnov test against the exponential
// distribution of mean 1. It sorts its argument.
func checkExponential(t *testing.T, what string, sample []float64) {
	t.Helper()
	slices.Sort(sample)
	n := float64(len(sample))
	var distance float64
	for i, x := range sample {
		f := -math.Expm1(-x)
		distance = max(distance, f-float64(i)/n, float64(i+1)/n-f)
	}
	if bound := 1.95 / math.Sqrt(n); distance > bound {
		t.Errorf("%s: KS distance %.5f from exponential, want at most %.5f (n = %.0f)", what, distance, bound, n)
	}
}

func TestPoissonGapsAreExponential(t *testing.T) {
	t.Parallel()
	for _, rate := range []float64{0.1, 500, 20_000} {
		for seed := range uint64(4) {
			s := poisson(t, rate, seed)
			checkExponential(t, s.String(), gaps(s, rate, 0, 100_000))
			checkExponential(t, s.String()+" after op 9e8", gaps(s, rate, 900_000_000, 20_000))
		}
	}
}

// TestPoissonGapsAcrossBorders checks the gaps across borders of the tree. A gap
// across the border of two blocks comes from two leaves. A gap across the border
// of the largest halves comes from two leaves that share only the root.
func TestPoissonGapsAcrossBorders(t *testing.T) {
	t.Parallel()
	for _, border := range []uint64{512, 1 << 20, 1 << 43} {
		var across []float64
		for seed := range uint64(3000) {
			s := poisson(t, pace.MaxRate, seed)
			across = append(across, gaps(s, pace.MaxRate, border, 1)...)
		}
		checkExponential(t, fmt.Sprintf("border at op %d", border), across)
	}
}

// TestPoissonFirstOp checks that the first op comes after one whole gap.
func TestPoissonFirstOp(t *testing.T) {
	t.Parallel()
	var first []float64
	for seed := range uint64(5000) {
		first = append(first, gaps(poisson(t, 10, seed), 10, 0, 1)...)
	}
	checkExponential(t, "first op over seeds", first)
}

// TestPoissonGapsAreIndependent checks that neighbouring gaps, and gaps about one
// or two blocks apart, are uncorrelated.
func TestPoissonGapsAreIndependent(t *testing.T) {
	t.Parallel()
	const n = 200_000
	all := gaps(poisson(t, 500, 11), 500, 0, n)
	for _, distance := range []int{1, 2, 3, 511, 512, 513, 1024} {
		var sum float64
		for i := range n - distance {
			sum += (all[i] - 1) * (all[i+distance] - 1)
		}
		if r := sum / float64(n-distance); math.Abs(r) > 3.3/math.Sqrt(n) {
			t.Errorf("gaps %d apart are correlated: %.5f", distance, r)
		}
	}
}

// TestPoissonIndexOfDispersion checks that the variance of the counts in windows
// equals their mean. The windows are shorter and longer than a block, so that an
// error in the splits of the tree would show.
func TestPoissonIndexOfDispersion(t *testing.T) {
	t.Parallel()
	const rate, windows = 1000, 2000
	for _, ops := range []float64{0.5, 10, 300, 512, 5000, 1e6} {
		s := poisson(t, rate, 5)
		width := time.Duration(ops / rate * 1e9)
		var sum, squares float64
		last := uint64(0)
		for w := range windows {
			next := s.Count(time.Duration(w+1) * width)
			count := float64(next - last)
			sum, squares, last = sum+count, squares+count*count, next
		}
		mean := sum / windows
		dispersion := (squares - sum*mean) / (windows - 1) / mean
		// Chi-square with windows-1 degrees of freedom, about normal.
		if bound := 3.3 * math.Sqrt(2.0/windows); math.Abs(dispersion-1) > bound {
			t.Errorf("windows of %v ops: index of dispersion %.4f, want 1 within %.4f", ops, dispersion, bound)
		}
	}
}

// TestPoissonSumsOfGaps checks over many seeds that the sum of 2^k gaps has mean
// and variance 2^k, at different levels of the tree.
func TestPoissonSumsOfGaps(t *testing.T) {
	t.Parallel()
	const seeds = 1500
	for _, k := range []int{9, 10, 15, 24, 32} {
		ops := math.Ldexp(1, k)
		var sum, squares float64
		for seed := range uint64(seeds) {
			s := poisson(t, pace.MaxRate, seed)
			z := (s.At(1<<k-1).Seconds()*pace.MaxRate - ops) / math.Sqrt(ops)
			sum, squares = sum+z, squares+z*z
		}
		if mean := sum / seeds; math.Abs(mean) > 3.3/math.Sqrt(seeds) {
			t.Errorf("2^%d gaps: mean off by %.3f standard deviations", k, mean)
		}
		if variance := squares / seeds; math.Abs(variance-1) > 3.3*math.Sqrt(2.0/seeds) {
			t.Errorf("2^%d gaps: the variance is %.3f times the expected one", k, variance)
		}
	}
}

func TestPoissonSameInAnyOrder(t *testing.T) {
	t.Parallel()
	const ops = 10_000
	forward := poisson(t, 500, 3)
	want := make([]time.Duration, ops)
	for n := range want {
		want[n] = forward.At(uint64(n))
	}
	shuffled := poisson(t, 500, 3)
	for _, n := range rand.New(rand.NewPCG(1, 2)).Perm(ops) {
		if got := shuffled.At(uint64(n)); got != want[n] {
			t.Fatalf("op %d is at %v when called out of order, and at %v in order", n, got, want[n])
		}
	}
}

func TestPoissonSeeds(t *testing.T) {
	t.Parallel()
	one, same, other := poisson(t, 500, 1), poisson(t, 500, 1), poisson(t, 500, 2)
	var equal int
	for n := range uint64(2000) {
		if one.At(n) != same.At(n) {
			t.Fatalf("op %d of the same seed is at %v and at %v", n, one.At(n), same.At(n))
		}
		if one.At(n) == other.At(n) {
			equal++
		}
	}
	if equal > 0 {
		t.Errorf("%d of 2000 ops have the same time with two different seeds", equal)
	}
}

// TestPoissonRatesStretch checks that two rates of one seed give the same process,
// stretched.
func TestPoissonRatesStretch(t *testing.T) {
	t.Parallel()
	slow, fast := poisson(t, 100, 9), poisson(t, 200, 9)
	for n := range uint64(2000) {
		if d := slow.At(n) - 2*fast.At(n); d < -2 || d > 2 {
			t.Fatalf("op %d is at %v at 100/s and at %v at 200/s", n, slow.At(n), fast.At(n))
		}
	}
}

// TestPoissonIsFixed checks that the times of a seed never change: a run stores
// only the seed.
func TestPoissonIsFixed(t *testing.T) {
	t.Parallel()
	s := poisson(t, 1000, 1)
	got := [...]time.Duration{s.At(0), s.At(1), s.At(511), s.At(512), s.At(1_000_000_000)}
	want := [...]time.Duration{1292339, 5190698, 540703969, 540806437, 1000051699032369}
	for i := range want {
		if d := got[i] - want[i]; d < -1 || d > 1 { // the last bit of math.Log depends on the CPU architecture
			t.Errorf("times = %d, want %d", got, want)
			break
		}
	}
}
