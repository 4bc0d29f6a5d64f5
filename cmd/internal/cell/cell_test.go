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
	for target, want := range map[string]int{
		"http://127.0.0.1:80": sourceCount,
		"http://192.0.2.1:80": 0,
		"http://[::1]:80":     0,
		"http://localhost:80": 0,
	} {
		u, err := url.Parse(target)
		if err != nil {
			t.Fatal(err)
		}
		if got := Sources(u, 7); len(got) != want {
			t.Errorf("%s: %d addresses, want %d", target, len(got), want)
		}
	}
}

func TestUsageBetween(t *testing.T) {
	before := targets.Usage{
		Hosts: []targets.HostUsage{{Host: "web-1", CPU: 0.1, CPUSeconds: 1, Periods: 100, ThrottledPeriods: 10}},
		Nodes: []targets.NodeUsage{{Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: 1}},
	}
	after := targets.Usage{
		Hosts: []targets.HostUsage{{
			Host: "web-1", CPU: 0.1, Isolated: true, CPUSeconds: 1.5, Periods: 1100, ThrottledPeriods: 510,
		}},
		Nodes: []targets.NodeUsage{{Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: 1.4, RSSBytes: 42}},
	}
	hosts, nodes := usageBetween(before, after, 10*time.Second)
	if h := hosts[0]; h.CPUSeconds != 0.5 || h.CPUShare != 0.5 || h.ThrottledShare != 0.5 || !h.Isolated {
		t.Errorf("host %+v, want 50%% of 0.1 cores for 10 s, throttled in 50%% of the periods", h)
	}
	if n := nodes[0]; n.CPUSeconds < 0.399 || n.CPUSeconds > 0.401 || n.RSSBytes != 42 {
		t.Errorf("node %+v, want 0.4 s of CPU and 42 bytes", n)
	}
}

// A step at a low rate is longer, so that it has enough ops.
func TestLength(t *testing.T) {
	l := Length{Ops: 1000, Min: 2 * time.Second, Max: 5 * time.Second}
	lengths := map[float64]time.Duration{100: 5 * time.Second, 250: 4 * time.Second, 10_000: 2 * time.Second}
	for rate, want := range lengths {
		if got := l.At(rate); got != want {
			t.Errorf("at %v/s: %v, want %v", rate, got, want)
		}
	}
}

// searchedCell is a cell with a capacity search: it met the objective at 100/s and 200/s,
// but not at 400/s.
func searchedCell() results.Cell {
	step := func(purpose string, rate float64, met bool, share float64) results.Step {
		return results.Step{
			Purpose: purpose, OfferedRPS: rate, SLOMet: met, Valid: true,
			Hosts: []results.HostUsage{{Host: "web-1", CPU: 0.1, CPUShare: share}},
			Nodes: []results.NodeUsage{{Node: "web-1", Host: "web-1", Role: "web", CPUSeconds: share}},
		}
	}
	c := results.Cell{
		CapacityLow: 200, CapacityHigh: 400, FailingRPS: 400, Repeats: []float64{200}, CapacityMethod: "bracket",
	}
	c.Steps = []results.Step{
		step("warmup", 100, true, 1), step("reference", 100, true, 0.4),
		step("search", 400, false, 1), step("confirm", 200, true, 0.92),
	}
	c.Reference = &c.Steps[1]
	return c
}

// A search step ends early only when it can no longer meet the objective. Without a bound
// for its class, a failed op counts only for the error rate.
func TestHopeless(t *testing.T) {
	for name, test := range map[string]struct {
		slo    string
		failed int // of 1000 ops
		want   bool
	}{
		"failures beyond the 99th percentile": {"p99<100ms,errors<5%", 20, true},
		"few failures":                        {"p99<100ms,errors<5%", 5, false},
		"no bound":                            {"errors<5%", 20, false},
		"bound for another class":             {"upload:p99<1s,errors<5%", 20, false},
		"no bound, too many errors":           {"errors<5%", 60, true},
	} {
		slo, err := results.ParseSLO(test.slo)
		if err != nil {
			t.Fatal(err)
		}
		got := false
		v := &observer{
			stepper: &Stepper{}, recorder: hdr.New(time.Now(), slo.BoundOf, nil), next: interval,
			onHopeless: func() { got = true }, tally: results.Tally{SLO: slo, Scheduled: 1000},
		}
		for i := range 1000 {
			fate := results.OK
			if i < test.failed {
				fate = results.HTTPError
			}
			v.outcome(results.Outcome{Class: "feed", Fate: fate, Done: 1000})
		}
		if got != test.want {
			t.Errorf("%s: hopeless %v, want %v", name, got, test.want)
		}
		step := v.recorder.Finish(1000)
		if results.Judge(&step, slo, results.Evidence{}); step.SLOMet == got {
			t.Errorf("%s: hopeless %v, but objective met %v (%s)", name, got, step.SLOMet, step.SLOBroken)
		}
	}
}

// All cells have the same arrivals in a repeat. Two repeats have no arrivals in common.
func TestSeedsOfRepeats(t *testing.T) {
	b := &Bench{Seed: 7}
	seen := map[uint64]int{}
	for n := range Full().Repeats {
		seed := b.seedBefore(n)
		if n == 0 && seed != 7 {
			t.Errorf("first repeat: seed %d, want 7", seed)
		}
		for step := range uint64(2 * referenceSeed) {
			if before, taken := seen[seed+step]; taken {
				t.Fatalf("repeats %d and %d have the same arrivals", before, n)
			}
			seen[seed+step] = n
		}
	}
}

func TestConclude(t *testing.T) {
	c := searchedCell()
	conclude(&c)
	if !c.Valid || c.CapacityRPS != 200 || c.LimitedBy != "web" || !strings.HasPrefix(c.Limit.Figure, "92%") {
		t.Errorf("cell %+v: want 200/s, limited by web with 92%%", c)
	}

	c = searchedCell()
	c.Repeats = []float64{300, 200, 250, 280, 240}
	conclude(&c)
	if c.CapacityRPS != 250 || c.CapacityLow != 200 || c.CapacityHigh != 300 {
		t.Errorf("capacity %v in %v..%v, want the median 250 in 200..300", c.CapacityRPS, c.CapacityLow, c.CapacityHigh)
	}

	for _, method := range []string{results.MethodReplay, results.MethodFixed} {
		c = searchedCell()
		c.CapacityMethod, c.Steps, c.CapacityLow = method, c.Steps[1:2], 0
		conclude(&c)
		if !c.Valid || c.LimitedBy != "unknown" || c.Limit.Figure != "no limit was looked for" {
			t.Errorf("%s: valid %v, limit %+v, want no limit, although the objective was met", method, c.Valid, c.Limit)
		}
	}

	c = results.Cell{Error: "the topology did not start"}
	conclude(&c)
	if c.Valid || c.LimitedBy != "unknown" {
		t.Errorf("cell with an error: valid %v, limited by %s", c.Valid, c.LimitedBy)
	}
}

// A cell takes over the warnings of the steps that its figures depend on.
func TestConcludeWithWarnings(t *testing.T) {
	const late = "the client was late"
	c := searchedCell()
	c.Steps[3].Valid, c.Steps[3].Warnings = false, []string{late}
	conclude(&c)
	if c.Valid || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "confirm step at 200/s: "+late) {
		t.Errorf("valid %v, warnings %q: want the warning of the step that gives the capacity", c.Valid, c.Warnings)
	}

	c = searchedCell()
	c.Steps[2].Valid, c.Steps[2].Client.CPUShare = false, 0.95
	c.Steps[2].Warnings = []string{"the client used 95% of the CPU that it had"}
	conclude(&c)
	if c.Valid || c.LimitedBy != "client" {
		t.Errorf("valid %v, limited by %s: want the client, which had no CPU left in the failing step",
			c.Valid, c.LimitedBy)
	}

	c = searchedCell()
	c.Steps[2].Valid, c.Steps[2].Excused = false, true
	c.Steps[2].Invalid, c.Steps[2].Warnings = []string{late}, []string{"web-1 died", late}
	conclude(&c)
	if !c.Valid || len(c.Warnings) != 1 || !strings.Contains(c.Warnings[0], "web-1 died") {
		t.Errorf("valid %v, warnings %q: want no word of lateness that did not decide the verdict", c.Valid, c.Warnings)
	}

	// A failing step that the client decided.
	c = searchedCell()
	c.Steps[2].Valid, c.Steps[2].ByClient, c.Steps[2].Warnings = false, true, []string{late}
	conclude(&c)
	if c.Valid || c.LimitedBy != "client" || len(c.Warnings) != 1 {
		t.Errorf("valid %v, limited by %s, warnings %q: want the client", c.Valid, c.LimitedBy, c.Warnings)
	}

	// The same, beside a failing step at the same rate that is only late.
	c = searchedCell()
	lateOnly, decided := c.Steps[2], c.Steps[2]
	lateOnly.Valid, lateOnly.Excused = false, true
	decided.Valid, decided.ByClient = false, true
	c.Steps = append(c.Steps, lateOnly, decided)
	conclude(&c)
	if c.Valid || c.LimitedBy != "client" {
		t.Errorf("valid %v, limited by %s: want the client", c.Valid, c.LimitedBy)
	}

	// The upper end of another repeat.
	c = searchedCell()
	decided.OfferedRPS = 500
	c.Steps, c.RepeatsHigh = append(c.Steps, decided), []float64{400, 500}
	conclude(&c)
	if c.Valid || c.LimitedBy != "client" {
		t.Errorf("valid %v, limited by %s: want the client, which decided the other repeat", c.Valid, c.LimitedBy)
	}

	// A repetition of the step that the client decided is valid.
	c = searchedCell()
	c.Steps[2].Valid, c.Steps[2].ByClient, c.Steps[2].Warnings = false, true, []string{late}
	c.Steps[2].Repeated, c.Warnings = true, nil
	c.Steps = append(c.Steps, c.Steps[2])
	c.Steps[4].Valid, c.Steps[4].ByClient, c.Steps[4].Repeated, c.Steps[4].Warnings = true, false, false, nil
	conclude(&c)
	if !c.Valid || c.LimitedBy != "web" || len(c.Warnings) != 0 {
		t.Errorf("valid %v, limited by %s, warnings %q: want the repetition to count", c.Valid, c.LimitedBy, c.Warnings)
	}

	// The reference steps of all repeats count, not only the last one.
	c = searchedCell()
	c.Steps[1].Valid, c.Steps[1].Excused, c.Steps[1].Warnings = false, true, []string{late}
	c.Steps = append(c.Steps, c.Steps[1])
	c.Steps[4].Valid, c.Steps[4].Warnings = true, nil
	c.Reference = new(c.Steps[4])
	conclude(&c)
	if c.Valid || len(c.Warnings) != 1 || c.Warnings[0] != "reference step at 100/s in repeat 1: "+late {
		t.Errorf("valid %v, warnings %q: want the warning of the first repeat", c.Valid, c.Warnings)
	}

	// The reference step is also the best step: its warning appears once.
	c = searchedCell()
	c.CapacityLow, c.Steps[1].Warnings = 100, []string{"5 requests were still in flight"}
	conclude(&c)
	if len(c.Warnings) != 1 {
		t.Errorf("warnings %q, want one", c.Warnings)
	}
}
