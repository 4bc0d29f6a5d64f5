package capacity_test

import (
	"math"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/stagebench/stagebench/results/capacity"
)

func config() capacity.Config {
	return capacity.Config{Allowed: []float64{0.01}, Start: 100, Min: 10, Max: 5000, First: 6, Steps: 3}
}

// batches returns seconds of a step in which a share of the ops missed the objective.
func batches(rate, missed float64) []capacity.Batch {
	ops := int64(rate)
	second := capacity.Batch{{Ops: ops, Missed: int64(missed * float64(ops))}}
	return []capacity.Batch{second, second, second}
}

// The first visit finds a rate that passes and one that fails, and halves the distance. Later
// visits stay near the estimate.
func TestNext(t *testing.T) {
	for _, truth := range []float64{30, 90, 700, 1500} {
		for _, peak := range []float64{0, truth * 1.4} {
			e := capacity.New(config())
			var visits [][]float64
			for range 3 {
				e.Begin(peak)
				var rates []float64
				for {
					rate, ok := e.Next()
					if !ok {
						break
					}
					share := 0.0
					if rate > truth {
						share = 0.2
					}
					e.Observe(rate, rate <= truth, batches(rate, share))
					rates = append(rates, rate)
				}
				visits = append(visits, rates)
			}
			if want := peak * 0.75; peak > 0 && visits[0][0] != want || peak == 0 && visits[0][0] != 100 {
				t.Errorf("truth %v, peak %v: the first step is at %v", truth, peak, visits[0][0])
			}
			near := 0.45 // a fifth below an estimate that is a fifth below the truth
			if peak == 0 {
				near = 0.7 // the steps of the first visit are far apart
			}
			for _, rate := range append(visits[1], visits[2]...) {
				if math.Abs(math.Log(rate/truth)) > near {
					t.Errorf("truth %v, peak %v: a later visit offers %v, far from it", truth, peak, rate)
				}
			}
			got, ok := e.Estimate()
			if !ok || math.Abs(math.Log(got.Value/truth)) > near || len(got.ByVisit) != 3 {
				t.Errorf("truth %v, peak %v: estimate %+v, %v", truth, peak, got, ok)
			}
		}
	}
}

// Failures that do not depend on the rate: their share decides, however few there are in a step.
func TestRareFailures(t *testing.T) {
	for share, enough := range map[float64]bool{0.0002: true, 0.003: false} {
		c := config()
		c.Allowed = []float64{0.001}
		e := capacity.New(c)
		random := rand.New(rand.NewPCG(1, 1))
		for range 8 {
			e.Begin(400)
			for {
				rate, ok := e.Next()
				if !ok {
					break
				}
				var seconds []capacity.Batch
				var missed int64
				for range 3 {
					count := capacity.Count{Ops: int64(rate)}
					for range count.Ops {
						if random.Float64() < share {
							count.Missed++
						}
					}
					missed += count.Missed
					seconds = append(seconds, capacity.Batch{count})
				}
				e.Observe(rate, float64(missed) <= 0.001*3*rate, seconds)
			}
		}
		if got, ok := e.Estimate(); enough && ok && got.Value < 400 || !enough && got.Value > 200 {
			t.Errorf("%v of the ops fail at all rates from 10 to 5000: the capacity is %+v", share, got)
		}
	}
}

// Rates stay between Min and Max, and no rate is offered twice there. Then the capacity is unknown.
func TestLimits(t *testing.T) {
	for share, want := range map[float64]float64{0: 5000, 0.5: 10} {
		c := config()
		c.First = 50
		e := capacity.New(c)
		e.Begin(0)
		last := 0.0
		for {
			rate, ok := e.Next()
			if !ok {
				break
			}
			last = rate
			e.Observe(rate, share == 0, batches(rate, share))
		}
		if last != want {
			t.Errorf("with %v of the ops missed, the last rate is %v, want %v", share, last, want)
		}
		got, ok := e.Estimate()
		if ok || share == 0 && (got.Low != want || got.High != 0) || share > 0 && (got.Low != 0 || got.High != want) {
			t.Errorf("with %v of the ops missed, the capacity is %+v, want none, beyond %v", share, got, want)
		}
	}
}

// Each term of an objective can be the one that sets the capacity.
func TestTerms(t *testing.T) {
	for _, strict := range []int{0, 1} {
		c := config()
		c.Allowed, c.First = []float64{0.01, 0.001}, 8
		e := capacity.New(c)
		e.Begin(700)
		for {
			rate, ok := e.Next()
			if !ok {
				break
			}
			second := capacity.Batch{{Ops: int64(rate)}, {Ops: int64(rate)}}
			if rate > 400 {
				second[strict].Missed = int64(0.05 * rate)
			}
			e.Observe(rate, rate <= 400, []capacity.Batch{second, second})
		}
		if got, ok := e.Estimate(); !ok || got.Value < 280 || got.Value > 480 {
			t.Errorf("term %d: %+v, %v, want about 400", strict, got, ok)
		}
	}
}

// The ratio of neighbours in time does not move with the speed of the machine.
func TestRatio(t *testing.T) {
	estimate := func(value float64) capacity.Estimate {
		e := capacity.Estimate{Interval: capacity.Interval{Value: value}}
		for _, speed := range []float64{0.6, 1, 1.6, 0.7, 1.4, 0.8} {
			e.ByVisit = append(e.ByVisit, value*speed)
		}
		return e
	}
	one, two := estimate(100), estimate(200)
	got, alone := capacity.Ratio(two, one), capacity.Pool(one.ByVisit)
	if math.Abs(got.Value-2) > 1e-9 || got.High/got.Low >= alone.High/alone.Low {
		t.Errorf("ratio %+v of two figures that move together, each by %+v", got, alone)
	}
}

func TestPool(t *testing.T) {
	one, two := capacity.Pool([]float64{100}), capacity.Pool([]float64{90, 111})
	many := capacity.Pool(slices.Repeat([]float64{95, 105}, 8))
	if math.Abs(one.Value-100) > 1e-9 || math.Abs(two.Value-100) > 0.1 {
		t.Errorf("values %v and %v, want 100", one.Value, two.Value)
	}
	width := func(i capacity.Interval) float64 { return i.High / i.Low }
	if !(width(one) > width(two) && width(two) > width(many)) || width(many) > 1.08 {
		t.Errorf("intervals %+v, %+v, %+v: want more samples to narrow them", one, two, many)
	}
}

// The interval holds the true capacity as often as it says, for very different systems on a
// machine whose speed moves by more than 10 %.
func TestCoverage(t *testing.T) {
	if raceEnabled {
		t.Skip("needs tens of thousands of simulated steps: run without -race")
	}
	const each = 25
	all := systems(40)
	for _, visits := range []int{1, 5, 25} {
		var covered, steps int
		var widths, errors, deviations []float64
		for i, s := range all {
			var sum, squares float64
			for run := range each {
				got, n, ok := s.estimate(uint64(i*each+run), visits)
				steps += n
				if !ok {
					continue
				}
				if got.Low <= s.truth && s.truth <= got.High {
					covered++
				}
				widths = append(widths, got.High/got.Low-1)
				e := math.Log(got.Value / s.truth)
				errors, sum, squares = append(errors, e), sum+e, squares+e*e
			}
			deviations = append(deviations, math.Sqrt(max(0, squares/each-sum*sum/each/each)))
		}
		quantile := func(v []float64, q float64) float64 {
			slices.Sort(v)
			return 100 * v[int(q*float64(len(v)-1))]
		}
		n := each * len(all)
		t.Logf("%d visits, %.1f steps: %d of %d intervals hold the truth, median width %.0f%%; error: median %+.1f%%, "+
			"5th to 95th percentile %+.0f%% to %+.0f%%; coefficient of variation: median %.0f%%, 90th percentile %.0f%%",
			visits, float64(steps)/float64(n), covered, n, quantile(widths, 0.5), quantile(errors, 0.5),
			quantile(errors, 0.05), quantile(errors, 0.95), quantile(deviations, 0.5), quantile(deviations, 0.9))
		if float64(covered) < 0.85*float64(n) {
			t.Errorf("%d visits: %d of %d intervals of 90%% hold the truth, want at least 85%%", visits, covered, n)
		}
		if bias := quantile(errors, 0.5); math.Abs(bias) > 8 {
			t.Errorf("%d visits: the median error is %+.1f%%", visits, bias)
		}
	}
}
