package cell

import (
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/targets"
)

func TestSourcesAreForLoopbackOnly(t *testing.T) {
	for target, want := range map[string]int{"http://127.0.0.1:80": sourceCount, "http://192.0.2.1:80": 0, "http://[::1]:80": 0, "http://localhost:80": 0} {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		if got := Sources(u, 7); len(got) != want {
			t.Errorf("%s: %d addresses, want %d", target, len(got), want)
		}
	}
}

func TestUsageBetweenTwoReadings(t *testing.T) {
	before := targets.Usage{
		Hosts: []targets.HostUsage{{Host: "web-1", CPU: 0.1, CPUSeconds: 1, Periods: 100, ThrottledPeriods: 10}},
		Nodes: []targets.NodeUsage{{Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: 1}},
	}
	after := targets.Usage{
		Hosts: []targets.HostUsage{{Host: "web-1", CPU: 0.1, Isolated: true, CPUSeconds: 1.5, Periods: 1100, ThrottledPeriods: 510}},
		Nodes: []targets.NodeUsage{{Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: 1.4, RSSBytes: 42}},
	}
	hosts, nodes := usageBetween(before, after, 10*time.Second)
	if h := hosts[0]; h.CPUSeconds != 0.5 || h.CPUShare != 0.5 || h.ThrottledShare != 0.5 || !h.Isolated {
		t.Errorf("host %+v, want half of a tenth of a core for 10 s, throttled in half of the periods", h)
	}
	if n := nodes[0]; n.CPUSeconds < 0.399 || n.CPUSeconds > 0.401 || n.RSSBytes != 42 {
		t.Errorf("node %+v, want 0.4 s", n)
	}
}

// The longer a step must be to have enough ops, the lower the rate.
func TestLength(t *testing.T) {
	l := Length{Ops: 1000, Min: 2 * time.Second, Max: 5 * time.Second}
	for rate, want := range map[float64]time.Duration{100: 5 * time.Second, 250: 4 * time.Second, 10_000: 2 * time.Second} {
		if got := l.At(rate); got != want {
			t.Errorf("at %v/s: %v, want %v", rate, got, want)
		}
	}
}

// measured is a cell whose capacity was searched: 100/s and 200/s met, 400/s not.
func measured() results.Cell {
	step := func(purpose string, rate float64, met bool, share float64) results.Step {
		return results.Step{
			Purpose: purpose, OfferedRPS: rate, SLOMet: met, Valid: true,
			Hosts: []results.HostUsage{{Host: "web-1", CPU: 0.1, CPUShare: share}},
			Nodes: []results.NodeUsage{{Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: share}},
		}
	}
	c := results.Cell{CapacityLow: 200, CapacityHigh: 400, FailingRPS: 400, Repeats: []float64{200}, CapacityMethod: "bracket"}
	c.Steps = []results.Step{step("warmup", 100, true, 1), step("reference", 100, true, 0.4), step("search", 400, false, 1), step("confirm", 200, true, 0.92)}
	c.Reference = &c.Steps[1]
	return c
}

// A search step ends early only when the objective cannot be met any more: without
// a bound for the pool, failures in it count for ErrorRate alone.
func TestHopeless(t *testing.T) {
	for name, test := range map[string]struct {
		slo    string
		failed int // of 1000 ops
		want   bool
	}{
		"failures beyond the 99th percentile": {"p99<100ms,errors<5%", 20, true},
		"failures that are allowed":           {"p99<100ms,errors<5%", 5, false},
		"no bound":                            {"errors<5%", 20, false},
		"a bound for another class":           {"upload:p99<1s,errors<5%", 20, false},
		"no bound, and too many":              {"errors<5%", 60, true},
	} {
		slo, err := results.ParseSLO(test.slo)
		if err != nil {
			t.Fatal(err)
		}
		got := false
		f := &follower{
			stepper: &Stepper{}, recorder: hdr.New(time.Now(), slo.BoundOf, nil), next: interval,
			hopeless: func() { got = true }, tally: results.Tally{SLO: slo, Scheduled: 1000},
		}
		for i := range 1000 {
			fate := results.OK
			if i < test.failed {
				fate = results.HTTPError
			}
			f.outcome(results.Outcome{Class: "feed", Fate: fate, Done: 1000})
		}
		if got != test.want {
			t.Errorf("%s: given up %v, want %v", name, got, test.want)
		}
		step := f.recorder.Finish(1000)
		if results.Judge(&step, slo, results.Evidence{}); step.SLOMet == got {
			t.Errorf("%s: given up %v, but met %v (%s)", name, got, step.SLOMet, step.SLOBroken)
		}
	}
}

// Cells share the arrivals of a repeat, repeats do not share theirs.
func TestEachRepeatHasArrivalsOfItsOwn(t *testing.T) {
	b := &Bench{Seed: 7}
	seen := map[uint64]int{}
	for n := range Full().Repeats {
		seed := b.seedOf(n)
		if n == 0 && seed != 7 {
			t.Errorf("repeat %d: seed %d, want 7 in the first", n, seed)
		}
		for step := range uint64(2 * referenceSeed) {
			if before, taken := seen[seed+step]; taken {
				t.Fatalf("repeats %d and %d have the same arrivals", before, n)
			}
			seen[seed+step] = n
		}
	}
}

func TestConclusions(t *testing.T) {
	c := measured()
	conclude(&c)
	if !c.Valid || c.CapacityRPS != 200 || c.LimitedBy != "web" || !strings.HasPrefix(c.Limit.Figure, "92%") {
		t.Errorf("cell %+v: want 200/s, limited by web with 92%%", c)
	}

	c = measured()
	c.Steps[3].Valid, c.Steps[3].Warnings = false, []string{"the client was late"}
	conclude(&c)
	if c.Valid || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "confirm step at 200/s: the client was late") {
		t.Errorf("valid %v, warnings %q: want the doubt about the step that the capacity rests on", c.Valid, c.Warnings)
	}

	c = measured()
	c.Steps[2].Valid, c.Steps[2].Client.CPUShare = false, 0.95
	c.Steps[2].Warnings = []string{"the client used 95% of the CPU that it had"}
	conclude(&c)
	if c.Valid || c.LimitedBy != "client" {
		t.Errorf("valid %v, limited by %s: want the client, which was out of CPU where the objective broke", c.Valid, c.LimitedBy)
	}

	c = measured()
	c.Steps[2].Valid, c.Steps[2].Excused, c.Steps[2].Warnings = false, true, []string{"the client was late"}
	conclude(&c)
	if !c.Valid || len(c.Warnings) != 1 {
		t.Errorf("valid %v, warnings %q: lateness that did not break the objective must only be told", c.Valid, c.Warnings)
	}

	c = measured()
	c.Repeats = []float64{300, 200, 250, 280, 240}
	conclude(&c)
	if c.CapacityRPS != 250 || c.CapacityLow != 200 || c.CapacityHigh != 300 {
		t.Errorf("capacity %v in %v..%v, want the median 250 in 200..300", c.CapacityRPS, c.CapacityLow, c.CapacityHigh)
	}

	// The reference of each repeat is doubted, not that of the last alone.
	c = measured()
	c.Steps[1].Valid, c.Steps[1].Warnings = false, []string{"the client was late"}
	c.Steps = append(c.Steps, c.Steps[1])
	c.Steps[4].Valid, c.Steps[4].Warnings = true, nil
	c.Reference = new(c.Steps[4])
	conclude(&c)
	if c.Valid || len(c.Warnings) != 1 || c.Warnings[0] != "reference step at 100/s in repeat 1: the client was late" {
		t.Errorf("valid %v, warnings %q: want the doubt about the first repeat", c.Valid, c.Warnings)
	}

	// A step that two figures rest on is doubted once.
	c = measured()
	c.CapacityLow, c.Steps[1].Warnings = 100, []string{"5 requests were still in flight"}
	conclude(&c)
	if len(c.Warnings) != 1 {
		t.Errorf("warnings %q, want one", c.Warnings)
	}

	for _, method := range []string{results.MethodReplay, results.MethodFixed} {
		c = measured()
		c.CapacityMethod, c.Steps, c.CapacityLow = method, c.Steps[1:2], 0
		conclude(&c)
		if !c.Valid || c.LimitedBy != "unknown" || c.Limit.Figure != "no limit was looked for" {
			t.Errorf("%s: valid %v, limit %+v, want none, although the objective was met", method, c.Valid, c.Limit)
		}
	}

	c = results.Cell{Error: "it did not come up"}
	conclude(&c)
	if c.Valid || c.LimitedBy != "unknown" {
		t.Errorf("a cell that could not be measured is valid %v, limited by %s", c.Valid, c.LimitedBy)
	}
}
