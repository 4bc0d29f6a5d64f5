package capacity_test

import (
	"math"
	"math/rand/v2"
	"testing"

	"github.com/stagebench/stagebench/results/capacity"
)

func config() capacity.Config {
	return capacity.Config{Start: 100, Factor: 2, Precision: 0.1, Min: 1, Max: 1e6, Steps: 40, Confirms: 6}
}

// run completes a search and returns the number of steps. The function met decides each step.
func run(s *capacity.Search, met func(rate float64, p capacity.Purpose) bool) int {
	for steps := 0; ; steps++ {
		rate, purpose, ok := s.Next()
		if !ok || steps > 200 {
			return steps
		}
		s.Observe(rate, met(rate, purpose))
	}
}

func TestBracketHoldsTheTruth(t *testing.T) {
	for _, truth := range []float64{1.5, 17, 99, 100, 101, 640, 12_345, 400_000} {
		s := capacity.New(config())
		steps := run(s, func(rate float64, _ capacity.Purpose) bool { return rate <= truth })
		low, high, confirmed := s.Bracket()
		if low > truth || high < truth || high/low > 1.1+1e-9 || !confirmed {
			t.Errorf("truth %v: bracket %v..%v confirmed %v", truth, low, high, confirmed)
		}
		if most := 2*int(math.Abs(math.Log2(truth/100))) + 12; steps > most {
			t.Errorf("truth %v: took %d steps, want at most %d", truth, steps, most)
		}
	}
}

func TestNothingPassesIsCapacityZero(t *testing.T) {
	s := capacity.New(config())
	run(s, func(float64, capacity.Purpose) bool { return false })
	if low, high, confirmed := s.Bracket(); low != 0 || high > 2 || confirmed {
		t.Errorf("bracket %v..%v confirmed %v, want 0 as the low end", low, high, confirmed)
	}
}

func TestEverythingPassesStopsAtMax(t *testing.T) {
	c := config()
	c.Max = 1000
	s := capacity.New(c)
	run(s, func(rate float64, _ capacity.Purpose) bool { return rate <= c.Max })
	if low, high, confirmed := s.Bracket(); low != 1000 || high != 0 || !confirmed {
		t.Errorf("bracket %v..%v confirmed %v, want 1000..0 confirmed", low, high, confirmed)
	}
}

// A short step that passes by luck must not raise the result: the confirmation fails.
func TestLuckIsNotConfirmed(t *testing.T) {
	s := capacity.New(config())
	run(s, func(rate float64, p capacity.Purpose) bool {
		if p == capacity.Confirm {
			return rate <= 300
		}
		return rate <= 700
	})
	low, high, confirmed := s.Bracket()
	if low > 300 || !confirmed || high < 300 {
		t.Errorf("bracket %v..%v confirmed %v, want the low end confirmed below 300", low, high, confirmed)
	}
}

// Close to the capacity, steps pass and fail at random. The search must end, and
// a confirmation must have passed at its low end.
func TestNoisyEdge(t *testing.T) {
	for seed := range uint64(200) {
		random := rand.New(rand.NewPCG(seed, 1))
		s := capacity.New(config())
		passedConfirm := map[float64]bool{}
		run(s, func(rate float64, p capacity.Purpose) bool {
			met := rate < 500*(1+0.1*random.NormFloat64())
			if p == capacity.Confirm && met {
				passedConfirm[rate] = true
			}
			return met
		})
		low, _, confirmed := s.Bracket()
		if confirmed != passedConfirm[low] {
			t.Errorf("seed %d: confirmed %v at low %v, but a confirmation passed there: %v",
				seed, confirmed, low, passedConfirm[low])
		}
		if low < 250 || low > 700 {
			t.Errorf("seed %d: low %v is far from 500", seed, low)
		}
	}
}

func TestLearnedRateIsNotMeasuredAgain(t *testing.T) {
	s := capacity.New(config())
	s.Learn(100)
	if rate, _, _ := s.Next(); rate != 200 {
		t.Errorf("first rate %v, want 200: 100 is known to pass", rate)
	}
}

// One failed step at every rate below the capacity must not lower the result.
func TestAFailedSearchStepIsRepeated(t *testing.T) {
	s := capacity.New(config())
	seen := map[float64]int{}
	run(s, func(rate float64, _ capacity.Purpose) bool {
		seen[rate]++
		return rate <= 640 && seen[rate] > 1
	})
	if low, high, confirmed := s.Bracket(); low > 640 || high < 640 || high/low > 1.1+1e-9 || !confirmed {
		t.Errorf("bracket %v..%v confirmed %v, want 640 in it", low, high, confirmed)
	}
}

func TestStepsAreBounded(t *testing.T) {
	c := config()
	c.Steps, c.Confirms = 5, 1
	s := capacity.New(c)
	if steps := run(s, func(rate float64, _ capacity.Purpose) bool { return rate <= 640 }); steps > 9 {
		t.Errorf("took %d steps, want at most 5, one confirmation, and the repeats of failed steps", steps)
	}
}
