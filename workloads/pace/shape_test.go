package pace_test

import (
	"math"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/workloads/pace"
)

// closedForm is the closed form of a shape: the integral of the rate over the first t seconds of a minute, its inverse,
// and the mean rate.
type closedForm struct {
	ops  func(t float64) float64
	when func(n float64) float64 // nil = there is none
	mean float64
}

// shapes returns shapes with their closed forms. The given rate is 100/s.
func shapes() map[string]closedForm {
	return map[string]closedForm{
		"step:rates=50/200/20": {
			func(t float64) float64 {
				return 50*min(t, 20) + 200*min(max(t-20, 0), 20) + 20*max(t-40, 0)
			},
			func(n float64) float64 {
				switch {
				case n <= 1000:
					return n / 50
				case n <= 5000:
					return 20 + (n-1000)/200
				}
				return 40 + (n-5000)/20
			},
			90,
		},
		"step:rates=x1/x0/x3": { // the mean is 4/3 of the proportions
			func(t float64) float64 { return 75*min(t, 20) + 225*max(t-40, 0) },
			func(n float64) float64 {
				if n <= 1500 {
					return n / 75
				}
				return 40 + (n-1500)/225
			},
			100,
		},
		"ramp:from=10,to=130": {
			func(t float64) float64 { return min(t, 60)*(10+min(t, 60)) + 130*max(t-60, 0) },
			func(n float64) float64 { return math.Sqrt(25+n) - 5 },
			70,
		},
		"ramp": {
			func(t float64) float64 { return 100*t*t/60 + 0*t },
			func(n float64) float64 { return math.Sqrt(n * 60 / 100) },
			100,
		},
		"ramp:from=200,to=0": {
			func(t float64) float64 { t = min(t, 60); return 200*t - 200*t*t/120 },
			func(n float64) float64 { return 60 - math.Sqrt(3600-n*120/200) },
			100,
		},
		"sine:amplitude=80,period=7s": {
			func(t float64) float64 { return 100*t + 80*7/(2*math.Pi)*(1-math.Cos(2*math.Pi*t/7)) }, nil,
			100 + 80*7/(2*math.Pi)*(1-math.Cos(2*math.Pi*60/7))/60,
		},
		"burst:rate=1000,every=10s,length=500ms": {
			func(t float64) float64 {
				whole, part := math.Floor(t/10), math.Mod(t, 10)
				return whole*(950+500) + 100*min(part, 9.5) + 1000*max(part-9.5, 0)
			},
			func(n float64) float64 {
				whole, part := math.Floor(n/1450), math.Mod(n, 1450)
				if part <= 950 {
					return whole*10 + part/100
				}
				return whole*10 + 9.5 + (part-950)/1000
			},
			145,
		},
		"burst:rate=x5,every=10s,length=1s": {
			func(t float64) float64 {
				whole, part := math.Floor(t/10), math.Mod(t, 10)
				return (whole*14 + min(part, 9) + 5*max(part-9, 0)) * 100 / 1.4
			}, nil, 100,
		},
	}
}

func schedule(t *testing.T, text string, rate float64, length time.Duration) (pace.Schedule, float64) {
	t.Helper()
	shape, err := pace.Parse(text)
	if err != nil {
		t.Fatal(err)
	}
	s, mean, err := shape.Schedule(rate, 1, length, 7)
	if err != nil {
		t.Fatal(err)
	}
	return s, mean
}

// separator returns what joins a further setting to a shape.
func separator(text string) string {
	if strings.Contains(text, ":") {
		return ","
	}
	return ":"
}

// With constant arrivals, the nth time is that of the closed form, and each window has as many ops as the integral of
// the rate says, to within one.
func TestShapesAgainstTheClosedForm(t *testing.T) {
	for text, want := range shapes() {
		t.Run(text, func(t *testing.T) {
			s, mean := schedule(t, text+separator(text)+"arrivals=constant", 100, time.Minute)
			if math.Abs(mean-want.mean) > 1e-9*want.mean {
				t.Errorf("mean %v/s, want %v/s", mean, want.mean)
			}
			n := uint64(math.Ceil(want.ops(60) - 1e-6))
			for i := range n {
				got := s.At(i).Seconds()
				if want.when != nil && math.Abs(got-want.when(float64(i))) > 1e-6 {
					t.Fatalf("op %d at %v s, want %v s", i, got, want.when(float64(i)))
				}
				if at := want.ops(got); math.Abs(at-float64(i)) > 1e-3 {
					t.Fatalf("op %d at %v s, where the integral is %v", i, got, at)
				}
			}
			for _, length := range []time.Duration{time.Millisecond, 333 * time.Millisecond, 5 * time.Second} {
				for from := time.Duration(0); from+length <= time.Minute; from += 97 * time.Millisecond {
					ops := float64(s.Count(from+length) - s.Count(from))
					if integral := want.ops((from + length).Seconds()) - want.ops(from.Seconds()); math.Abs(ops-integral) > 1+1e-6 {
						t.Fatalf("%v ops from %v to %v, want %v", ops, from, from+length, integral)
					}
				}
			}
		})
	}
}

// With Poisson arrivals, the counts of windows have the integral of the rate as their mean and as their variance.
func TestShapesWithPoissonArrivals(t *testing.T) {
	for text, want := range shapes() {
		t.Run(text, func(t *testing.T) {
			shape, err := pace.Parse(text)
			if err != nil {
				t.Fatal(err)
			}
			const seeds, windows = 40, 30
			var squares, cells float64
			for seed := range uint64(seeds) {
				s, _, err := shape.Schedule(100, 1, time.Minute, seed)
				if err != nil {
					t.Fatal(err)
				}
				for w := range windows {
					from, to := time.Duration(2*w)*time.Second, time.Duration(2*w+2)*time.Second
					integral := want.ops(to.Seconds()) - want.ops(from.Seconds())
					ops := float64(s.Count(to) - s.Count(from))
					if integral < 5 {
						continue
					}
					squares += (ops - integral) * (ops - integral) / integral
					cells++
				}
			}
			// Chi-square with cells degrees of freedom: mean cells, variance 2 cells. Five standard deviations.
			if math.Abs(squares-cells) > 5*math.Sqrt(2*cells) {
				t.Errorf("chi-square %v of %v windows", squares, cells)
			}
		})
	}
}

// Times never decrease, and Count agrees with them to the nanosecond.
func TestShapesCount(t *testing.T) {
	for text := range shapes() {
		for _, arrivals := range []string{"constant", "poisson"} {
			s, _ := schedule(t, text+separator(text)+"arrivals="+arrivals, 100, time.Minute)
			last := time.Duration(0)
			for n := range uint64(3000) {
				at := s.At(n)
				if at < last {
					t.Fatalf("%s: op %d at %v is before op %d at %v", s, n, at, n-1, last)
				}
				if at == math.MaxInt64 {
					break
				}
				if before, after := s.Count(at), s.Count(at+1); before > n || after <= n {
					t.Fatalf("%s: op %d at %v, but %d ops before that and %d by then", s, n, at, before, after)
				}
				last = at
			}
		}
	}
}

func TestPhases(t *testing.T) {
	s, length, err := pace.Phases([]pace.Phase{
		{Length: 20 * time.Second, From: 50, To: 50},
		{Length: time.Minute, From: 50, To: 400},
		{Length: 10 * time.Second},
	}, 3)
	if err != nil || length != 90*time.Second {
		t.Fatalf("length %v, %v", length, err)
	}
	const want = "phases 50/s to 50/s in 20s, 50/s to 400/s in 1m0s, 0/s to 0/s in 10s, poisson arrivals seed 3"
	if s.String() != want {
		t.Errorf("%s, want %s", s, want)
	}
	for end, ops := range map[time.Duration]float64{
		20 * time.Second: 1000, 50 * time.Second: 1000 + 30*(50+225)/2, 80 * time.Second: 1000 + 60*225,
		time.Hour: 1000 + 60*225,
	} {
		if got := float64(s.Count(end)); math.Abs(got-ops) > 5*math.Sqrt(ops) {
			t.Errorf("%v ops in %v, want %v", got, end, ops)
		}
	}
	for _, bad := range [][]pace.Phase{
		nil,
		{{From: 1, To: 1}},
		{{Length: time.Second, From: -1, To: 1}},
		{{Length: time.Second, From: 1, To: math.NaN()}},
		{{Length: time.Second, From: 1, To: 2 * pace.MaxRate}},
	} {
		if s, _, err := pace.Phases(bad, 1); err == nil {
			t.Errorf("%v: %v, want an error", bad, s)
		}
	}
}

// A shape that ends at the rate 0 has no further ops.
func TestShapeThatEnds(t *testing.T) {
	s, _ := schedule(t, "ramp:from=200,to=0,arrivals=constant", 100, time.Minute)
	if n := s.Count(time.Hour); n != 6000 && n != 6001 {
		t.Errorf("%d ops, want 6000", n)
	}
	if at := s.At(7000); at != math.MaxInt64 {
		t.Errorf("op 7000 at %v", at)
	}
}

// The schedule of journeys has fewer begins, by the number of requests of a journey.
func TestShapeOfJourneys(t *testing.T) {
	shape, err := pace.Parse("ramp:from=10,to=130,arrivals=constant")
	if err != nil {
		t.Fatal(err)
	}
	s, mean, err := shape.Schedule(0, 7, time.Minute, 1)
	if err != nil || mean != 70 || s.Count(time.Minute) != 600 {
		t.Errorf("mean %v/s, %d journeys, %v: want 70/s and 600", mean, s.Count(time.Minute), err)
	}
}

func TestShapesOfOneRate(t *testing.T) {
	for text, want := range map[string]string{"constant": "constant 50/s", "poisson": "poisson 50/s seed 7"} {
		if s, mean := schedule(t, text, 50, time.Minute); s.String() != want || mean != 50 {
			t.Errorf("%s, mean %v/s, want %s", s, mean, want)
		}
	}
	if s, mean, err := (pace.Shape{}).Schedule(50, 1, time.Minute, 7); err != nil || s.String() != "poisson 50/s seed 7" ||
		mean != 50 {
		t.Errorf("the zero value: %v, %v, %v", s, mean, err)
	}
}

func TestBadShapes(t *testing.T) {
	for text, want := range map[string]string{
		"":                                   "want one of poisson, constant, step, ramp, sine, burst",
		"square":                             "want one of",
		"poisson:rate=5":                     `poisson has no setting "rate": want poisson`,
		"ramp:from=-1":                       `from is "-1": want requests per second`,
		"ramp:from=NaN":                      "want requests per second",
		"ramp:from=2000000":                  "want requests per second",
		"ramp:from=10":                       "want only rates, or only proportions",
		"ramp:from=0,to=0":                   "all rates are 0",
		"ramp:up=7":                          `ramp has no setting "up": want ramp:from=x0,to=x2`,
		"step:rates=":                        "want requests per second",
		"sine:amplitude=x1.1":                "makes the rate negative",
		"sine:period=0s":                     "want a duration such as 10s",
		"burst:every=1s":                     "want shorter bursts",
		"burst:length=fast":                  "want a duration such as 1s",
		"burst:arrivals=random":              "want constant or poisson",
		"step:rates=1/2,arrivals=constant,x": `step has no setting "x"`,
	} {
		if _, err := pace.Parse(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
	for text, want := range map[string]string{
		"sine:amplitude=101":     "makes the rate negative",
		"step:rates=0.01/0.02":   "want 0.1 to 1000000 ops per second",
		"ramp:from=0,to=0.00001": "want 0.1 to 1000000 ops per second",
	} {
		shape, err := pace.Parse(text)
		if err != nil {
			t.Fatal(err)
		}
		if _, _, err := shape.Schedule(100, 1, time.Minute, 1); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %s", text, err, want)
		}
	}
}

func TestNeedsRate(t *testing.T) {
	for text, want := range map[string]bool{
		"poisson": true, "step": true, "step:rates=1/2": false, "ramp": true, "ramp:from=1,to=2": false,
		"sine": true, "sine:amplitude=5": true, "burst": true, "burst:rate=5": true,
	} {
		if shape, err := pace.Parse(text); err != nil || shape.NeedsRate() != want || shape.String() != text {
			t.Errorf("%s: needs a rate: %t, %v", text, shape.NeedsRate(), err)
		}
	}
}

// FuzzShape: whatever parses makes a schedule whose times never decrease, or an error.
func FuzzShape(f *testing.F) {
	for text := range shapes() {
		f.Add(text, 100.0, int64(time.Minute))
	}
	f.Fuzz(func(t *testing.T, text string, rate float64, length int64) {
		shape, err := pace.Parse(text)
		if err != nil || !(rate >= pace.MinRate && rate <= pace.MaxRate) || length <= 0 || length > int64(time.Hour) {
			return
		}
		s, _, err := shape.Schedule(rate, 1, time.Duration(length), 1)
		if err != nil {
			return
		}
		last := time.Duration(0)
		for n := range uint64(50) {
			at := s.At(n)
			if at < last {
				t.Fatalf("%s: op %d at %v, after one at %v", s, n, at, last)
			}
			last = at
		}
	})
}
