package trend_test

import (
	"math/rand/v2"
	"testing"

	"github.com/stagebench/stagebench/results/trend"
)

// measured returns n values with a relative standard deviation of 2 % around a level.
func measured(seed uint64, n int, level func(int) float64) []float64 {
	random := rand.New(rand.NewPCG(seed, 7))
	values := make([]float64, n)
	for i := range values {
		values[i] = level(i) * (1 + 0.02*random.NormFloat64())
	}
	return values
}

// from returns a level that is 1 and then, from an index on, another one.
func from(at int, level float64) func(int) float64 {
	return func(i int) float64 {
		if i < at {
			return 1
		}
		return level
	}
}

// A step of 5 % at 50 of 100 is found at its place: always, and in nine of ten series within one run.
func TestStep(t *testing.T) {
	const series = 100
	near := 0
	for seed := range uint64(series) {
		changes := trend.Detect(measured(seed, 100, from(50, 1.05)), 1)
		if len(changes) == 0 || changes[0].At < 40 || changes[0].At > 60 {
			t.Errorf("seed %d: change points %v, want one at 50", seed, changes)
		}
		if len(changes) == 1 && changes[0].At >= 49 && changes[0].At <= 51 {
			near++
		}
	}
	if changes := trend.Detect(measured(1, 100, from(50, 1.05)), 1); len(changes) != 1 ||
		changes[0].At < 49 || changes[0].At > 51 || changes[0].P > 0.002 || changes[0].P <= 0 {
		t.Errorf("seed 1: change points %+v, want one at 49 to 51 with a low p-value", changes)
	}
	if near < 90 {
		t.Errorf("%d of %d change points within one run of the step, want 90", near, series)
	}
}

// Of 200 stable series of 100 runs, at most 2 have a change point, and of 1,000 series of 200 runs at most 5. It would
// be 11 without the test of the whole series.
func TestNoise(t *testing.T) {
	for _, test := range []struct{ series, runs, most int }{{200, 100, 2}, {1000, 200, 5}} {
		found := 0
		for seed := range uint64(test.series) {
			if changes := trend.Detect(measured(seed, test.runs, from(0, 1)), 1); len(changes) > 0 {
				found++
			}
		}
		if found > test.most {
			t.Errorf("%d of %d stable series of %d runs have a change point, want at most %d",
				found, test.series, test.runs, test.most)
		}
	}
}

// A single outlier is no change point, wherever it is and however large. Series with one are not more often taken for
// changed than others.
func TestSpike(t *testing.T) {
	for _, at := range []int{0, 1, 30, 57, 58, 59} {
		values := measured(1, 60, from(0, 1))
		values[at] *= 10
		if changes := trend.Detect(values, 1); len(changes) > 0 {
			t.Errorf("change points %v, but there is only an outlier at %d", changes, at)
		}
	}
	found := 0
	for seed := range uint64(200) {
		values := measured(seed, 60, from(0, 1))
		values[seed*7%60] *= 10
		if changes := trend.Detect(values, 1); len(changes) > 0 {
			found++
		}
	}
	if found > 2 {
		t.Errorf("%d of 200 series with one outlier have a change point, want at most 2", found)
	}
}

// Three of four changes are found in the fourth run after them, within one run, also if an older value is an outlier. A
// level that comes and goes is two changes.
func TestLateAndShortChanges(t *testing.T) {
	found := 0
	for seed := range uint64(50) {
		values := measured(seed, 34, from(30, 1.10))
		values[3] *= 1.5
		if changes := trend.Detect(values, 1); len(changes) == 1 && changes[0].At >= 29 && changes[0].At <= 31 {
			found++
		}
	}
	if found < 38 {
		t.Errorf("%d of 50 changes of 10 %% are found in the fourth run at their place, want 38", found)
	}
	changes := trend.Detect(measured(1, 100, func(i int) float64 {
		if i >= 45 && i < 55 {
			return 1.10
		}
		return 1
	}), 1)
	if len(changes) != 2 || max(changes[0].At-45, 45-changes[0].At, changes[1].At-55, 55-changes[1].At) > 2 {
		t.Errorf("change points %v, want 45 and 55, give or take 2", changes)
	}
}

// Equal values, and series that are too short for two levels, have no change points. Shares that are mostly 0 have.
func TestFewAndEqualValues(t *testing.T) {
	for _, values := range [][]float64{nil, {1}, {1, 1, 1, 2, 2}, make([]float64, 50)} {
		if changes := trend.Detect(values, 1); len(changes) > 0 {
			t.Errorf("%v: change points %v", values, changes)
		}
	}
	errors := make([]float64, 40)
	for i := 34; i < len(errors); i++ {
		errors[i] = 0.01
	}
	if changes := trend.Detect(errors, 1); len(changes) != 1 || changes[0].At != 34 {
		t.Errorf("change points %v of the share of errors, want 34", changes)
	}
}

// A year of three runs a day: the cost does not grow with the square of the length.
func BenchmarkDetect(b *testing.B) {
	values := measured(1, 1000, from(500, 1.05))
	for b.Loop() {
		if len(trend.Detect(values, 1)) == 0 {
			b.Fatal("no change point")
		}
	}
}
