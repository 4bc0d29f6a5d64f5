package gate_test

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/gate"
)

// figures are those of a slice, by metric. The zero value of a figure is replaced by a usual one.
type figures map[string]float64

// slice returns a valid slice with these figures.
func slice(f figures) gate.Slice {
	or := func(name string, usual float64) float64 {
		if value, given := f[name]; given {
			return value
		}
		return usual
	}
	ns := func(name string, usual float64) *int64 { return new(int64(math.Round(or(name, usual)))) }
	const sent = 10_000
	s := gate.Slice{Burst: &results.Step{GoodputRPS: or("burst", 2000), Seconds: 2}}
	s.Steady.Valid, s.Steady.TimeoutNS = true, 5e9
	s.Steady.Ledger = results.Ledger{Scheduled: sent, Sent: sent, OK: sent}
	s.Steady.Ledger.HTTPError = int64(math.Round(sent * or("errors", 0)))
	s.Steady.Ledger.OK -= s.Steady.Ledger.HTTPError
	s.Steady.ResponseAll = results.Latency{
		Count: sent, P50: ns("p50", 1e6), P95: ns("p95", 3e6), P99: ns("p99", 9e6),
	}
	s.Steady.Nodes = []results.NodeUsage{{CPUSeconds: or("cpu", 500_000) * sent / 1e9}}
	return s
}

// noisy returns a block of two slices whose relative metrics differ by normal noise, and in the median also by a true
// effect.
func noisy(random *rand.Rand, sigma, effect float64) (base, head gate.Slice) {
	f := figures{}
	for name, usual := range map[string]float64{"cpu": 5e5, "p50": 1e6, "p95": 3e6, "p99": 9e6, "burst": 2000} {
		d := sigma * random.NormFloat64()
		if name == "p50" {
			d += math.Log1p(effect)
		}
		f[name] = usual * math.Exp(d)
	}
	return slice(nil), slice(f)
}

// decide adds blocks until the gate decides.
func decide(t *testing.T, metrics []gate.Metric, seed uint64, block func() (base, head gate.Slice)) results.Gate {
	t.Helper()
	g, err := gate.New(metrics, seed)
	if err != nil {
		t.Fatal(err)
	}
	for g.Verdict() == results.GateUndecided {
		base, head := block()
		g.Add(base, head, false)
	}
	return g.Result(true)
}

// The operating characteristics on simulated gates: false alarms, false passes, and how many blocks a quiet case needs.
// Six metrics have noise of sigma in each block, and one of them is shifted.
func TestOperatingCharacteristics(t *testing.T) {
	for _, test := range []struct {
		sigma, effect float64
		bounds        map[string]float64 // of the shares of the verdicts, and of the mean number of blocks; negative: least
	}{
		{0.02, 0, map[string]float64{results.GateRegression: 0.01, results.GatePass: -0.99, "blocks": 9}},
		{0.035, 0.05, map[string]float64{results.GatePass: 0.015, results.GateRegression: -0.97}},
		{0.05, 0, map[string]float64{results.GateRegression: 0.01, results.GatePass: -0.97, "blocks": 22}},
		{0.05, 0.05, map[string]float64{results.GatePass: 0.025, results.GateRegression: -0.95}},
		{0.08, 0.10, map[string]float64{results.GatePass: 0.005, results.GateRegression: -0.97}},
	} {
		t.Run(fmt.Sprintf("sigma %v effect %v", test.sigma, test.effect), func(t *testing.T) {
			t.Parallel()
			got := map[string]float64{}
			for n := range gates {
				random := rand.New(rand.NewPCG(uint64(n), math.Float64bits(test.sigma+1000*test.effect)))
				r := decide(t, sixRelative(), uint64(n), func() (base, head gate.Slice) {
					return noisy(random, test.sigma, test.effect)
				})
				got[r.Verdict] += 1. / gates
				got["blocks"] += float64(r.Counted) / gates
			}
			t.Logf("%d gates: regression %.2f %%, pass %.2f %%, inconclusive %.2f %%, mean blocks %.1f", gates,
				100*got[results.GateRegression], 100*got[results.GatePass], 100*got[results.GateInconclusive], got["blocks"])
			for what, bound := range test.bounds {
				if bound >= 0 && got[what] > bound+slack || bound < 0 && got[what] < -bound-slack {
					t.Errorf("%s: %v, want %v (at least, if negative)", what, got[what], bound)
				}
			}
		})
	}
}

// sixRelative returns six metrics with equal margins. Errors, which have no noise here, are replaced by a second p99.
func sixRelative() []gate.Metric {
	metrics := gate.Metrics()
	for i := range metrics {
		metrics[i].Margin = 0.05
	}
	second := metrics[3]
	second.Name = "second"
	return append(slices.DeleteFunc(metrics, func(m gate.Metric) bool { return m.Unit == "share" }), second)
}

// Each metric alone can end a gate in each verdict.
func TestEachMetricDecides(t *testing.T) {
	for _, m := range gate.Metrics() {
		t.Run(m.Name, func(t *testing.T) {
			usual := map[string]float64{"cpu": 5e5, "p50": 1e6, "p95": 3e6, "p99": 9e6, "errors": 0.01, "burst": 2000}[m.Name]
			worse, large := usual*1.25, 0.6
			switch m.Name {
			case "errors":
				worse, large = usual+0.01, 0.8
			case "burst":
				worse = usual / 1.25
			}
			random := rand.New(rand.NewPCG(1, 1))
			block := func(mean, noise float64) func() (base, head gate.Slice) {
				return func() (base, head gate.Slice) {
					return slice(figures{m.Name: usual}), slice(figures{m.Name: mean * math.Exp(noise*random.NormFloat64())})
				}
			}
			for want, next := range map[string]func() (base, head gate.Slice){
				results.GatePass: block(usual, 0.01), results.GateRegression: block(worse, 0.02),
				results.GateInconclusive: block(usual, large),
			} {
				r := decide(t, gate.Metrics(), 7, next)
				if r.Verdict != want {
					t.Errorf("verdict %s (%s), want %s", r.Verdict, r.Why, want)
				}
				if named := strings.Contains(r.Why, m.Title); named != (want != results.GatePass) {
					t.Errorf("%s: why %q", want, r.Why)
				}
				for _, other := range r.Metrics {
					if other.Name != m.Name && other.Verdict != results.GatePass {
						t.Errorf("%s: metric %s has the verdict %s, want pass", want, other.Name, other.Verdict)
					}
				}
			}
		})
	}
}

// A change for the worse below the materiality is no regression, however certain it is.
func TestImmaterialChangeIsNoRegression(t *testing.T) {
	random := rand.New(rand.NewPCG(2, 2))
	r := decide(t, gate.Metrics(), 1, func() (base, head gate.Slice) {
		return slice(nil), slice(figures{"cpu": 5e5 * 1.01 * math.Exp(0.0005*random.NormFloat64())})
	})
	if r.Verdict != results.GatePass {
		t.Errorf("verdict %s, want pass: +1 %% is certain, but below 2 %%", r.Verdict)
	}
}

// A head whose requests fail is a regression, although no percentile has a value.
func TestFailuresAreARegression(t *testing.T) {
	r := decide(t, gate.Metrics(), 1, func() (base, head gate.Slice) {
		head = slice(figures{"errors": 1, "burst": 0})
		head.Steady.ResponseAll = results.Latency{Count: 10_000}
		return slice(nil), head
	})
	if r.Verdict != results.GateRegression || r.Counted != 12 || r.Metrics[3].Head != 5e9 {
		t.Errorf("%s after %d blocks, p99 %v ns: want a regression after 12, and the timeout as p99",
			r.Verdict, r.Counted, r.Metrics[3].Head)
	}
}

// Blocks that cannot be trusted do not count, and too many of them make the gate invalid.
func TestDroppedBlocks(t *testing.T) {
	disturbed := slice(nil)
	disturbed.Steady.Valid, disturbed.Steady.Invalid = false, []string{"something else used the machine"}
	slow := slice(nil)
	slow.Speed.Compute = 1
	fast := slice(nil)
	fast.Speed.Compute = 1.2
	none := gate.Slice{Steady: results.Step{Valid: true}}
	for name, block := range map[string][2]gate.Slice{
		"disturbed": {disturbed, slice(nil)}, "speed": {slow, fast}, "nothing measured": {slice(nil), none},
	} {
		t.Run(name, func(t *testing.T) {
			all := decide(t, gate.Metrics(), 1, func() (base, head gate.Slice) { return block[0], block[1] })
			if all.Verdict != results.GateInvalid || all.Counted != 0 || len(all.Blocks) != 4 || all.Blocks[0].Dropped == "" {
				t.Errorf("%s after %d blocks, %d counted (%s): want invalid after 4",
					all.Verdict, len(all.Blocks), all.Counted, all.Why)
			}
			n := 0
			few := decide(t, gate.Metrics(), 1, func() (base, head gate.Slice) {
				if n++; n%5 == 0 {
					return block[0], block[1]
				}
				return slice(nil), slice(nil)
			})
			if few.Verdict != results.GatePass || few.Counted != 8 || len(few.Blocks) != 9 {
				t.Errorf("%s after %d blocks, %d counted: want pass after 9 with 8", few.Verdict, len(few.Blocks), few.Counted)
			}
		})
	}
}

// A late client does not drop a block, because its lag is left out. It stays in if the step
// does not have the percentiles of all requests without it.
func TestLagIsLeftOut(t *testing.T) {
	late := slice(figures{"p99": 12e6})
	late.Steady.Valid, late.Steady.Excused, late.Steady.Invalid = false, true, []string{"the client was late"}
	late.Steady.ResponseNoLag = slice(nil).Steady.ResponseAll
	r := decide(t, gate.Metrics(), 1, func() (base, head gate.Slice) { return slice(nil), late })
	if r.Verdict != results.GatePass || r.Metrics[3].Head != 9e6 || r.Counted != 8 {
		t.Errorf("%s, p99 %v, %d blocks: want a pass with the p99 of 9 ms", r.Verdict, r.Metrics[3].Head, r.Counted)
	}
	late.Steady.ResponseNoLag.Count--
	r = decide(t, gate.Metrics(), 1, func() (base, head gate.Slice) { return slice(nil), late })
	if r.Verdict != results.GateRegression || r.Metrics[3].Head != 12e6 {
		t.Errorf("%s, p99 %v: want a regression with the p99 of 12 ms, because the other one lacks a request",
			r.Verdict, r.Metrics[3].Head)
	}
}

// A gate that runs out of blocks says so, and is never a pass.
func TestTooFewBlocks(t *testing.T) {
	wants := map[int]string{0: "there are 0 blocks", 7: "there are 7 blocks", 11: "the first 8 of the 11"}
	for blocks, want := range wants {
		g, _ := gate.New(gate.Metrics(), 1)
		random := rand.New(rand.NewPCG(3, 3))
		for range blocks {
			base, head := noisy(random, 0.3, 0)
			g.Add(base, head, false)
		}
		if r := g.Result(true); r.Verdict != results.GateInconclusive || !strings.Contains(r.Why, want) {
			t.Errorf("%d blocks: %s (%s), want inconclusive with %q", blocks, r.Verdict, r.Why, want)
		}
	}
}

func TestMetricsOfASlice(t *testing.T) {
	few := slice(nil)
	few.Steady.ResponseAll = results.Latency{Count: 1100, P50: new(int64(1)), P95: new(int64(1)), P99: new(int64(1))}
	few.Steady.Nodes, few.Burst = nil, nil
	var names []string
	for _, m := range gate.Measurable(gate.Metrics(), few) {
		names = append(names, m.Name)
	}
	if want := []string{"p50", "p95", "errors"}; !slices.Equal(names, want) {
		t.Errorf("metrics %v, want %v: p99 needs 1000 requests in slices with fewer of them, too", names, want)
	}
}

func TestMargins(t *testing.T) {
	metrics, err := gate.With(gate.Metrics(), "p99=20%, errors=0.05%", gate.SetMargin)
	if err != nil || metrics[3].Margin != 0.2 || metrics[4].Margin != 0.0005 || metrics[4].Material != 0.0005 {
		t.Errorf("%+v, %v", metrics, err)
	}
	metrics, err = gate.With(gate.Metrics(), "p95=1%,p99=20%", gate.SetMaterial)
	if err != nil || metrics[2].Material != 0.01 || metrics[2].Margin != 0.05 || metrics[3].Margin != 0.2 {
		t.Errorf("%+v, %v", metrics, err)
	}
	for _, bad := range []string{"p98=1%", "p99", "p99=5", "p99=0%", "p99=NaN%", "p99=-1%"} {
		if _, err := gate.With(gate.Metrics(), bad, gate.SetMargin); err == nil || !strings.Contains(err.Error(), bad) {
			t.Errorf("%q: error %v", bad, err)
		}
	}
	chosen, err := gate.Only(gate.Metrics(), []string{"p99", "cpu"})
	if err != nil || len(chosen) != 2 || chosen[0].Name != "cpu" {
		t.Errorf("%v, %v", chosen, err)
	}
	if _, err := gate.Only(gate.Metrics(), []string{"latency"}); err == nil {
		t.Error("an unknown metric was accepted")
	}
}

// The order of the slices depends on the seed, and is about balanced.
func TestHeadFirst(t *testing.T) {
	first := 0
	for n := range 1000 {
		if gate.HeadFirst(1, n) {
			first++
		}
	}
	if first < 400 || first > 600 {
		t.Errorf("the head is first in %d of 1000 blocks", first)
	}
}
