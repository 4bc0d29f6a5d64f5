package table

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
)

var update = flag.Bool("update", false, "rewrite the golden files")

// golden compares the rendered tables with the golden files, one per style.
func golden(t *testing.T, name string, styles map[string]Style, tables ...Table) {
	t.Helper()
	for extension, style := range styles {
		t.Run(extension, func(t *testing.T) {
			var got bytes.Buffer
			if err := Render(&got, style, tables...); err != nil {
				t.Fatal(err)
			}
			for line := range strings.Lines(got.String()) {
				if n := utf8.RuneCountInString(strings.TrimSpace(line)); style.Width > 0 && n > style.Width {
					t.Errorf("a line has %d characters, want at most %d: %s", n, style.Width, line)
				}
			}
			path := filepath.Join("testdata", name+extension)
			if *update {
				if err := os.WriteFile(path, got.Bytes(), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v\nrun: make golden", err)
			}
			if diff := cmp.Diff(string(want), got.String()); diff != "" {
				t.Errorf("%s (-want +got), make golden rewrites it:\n%s", path, diff)
			}
		})
	}
}

// styles are the formats by extension: text for terminals of three widths, and the others.
func styles() map[string]Style {
	return map[string]Style{
		"-80.txt": {Format: FormatText, Width: 80}, ".txt": {Format: FormatText, Width: DefaultWidth},
		"-140.txt": {Format: FormatText, Width: 140},
		".md":      {Format: FormatMarkdown}, ".csv": {Format: FormatCSV}, ".json": {Format: FormatJSON},
	}
}

func TestLadderGolden(t *testing.T) {
	golden(t, "ladder", styles(), Ladder(plainRun()))
}

// A gate in which each metric has another verdict, and one without any block that counts.
func TestGateGolden(t *testing.T) {
	chance := 0.0002
	g := results.Gate{
		Base: "bin/main", Head: "this binary", Verdict: results.GateRegression, Why: "+7.0 % CPU time per request",
		OfferedRPS: 600, Counted: 12, Warnings: []string{"p99 is not compared"},
		Blocks: slices.Repeat([]results.GateBlock{{}}, 12),
		Metrics: []results.GateMetric{
			{
				Name: "cpu", Unit: "ns", Better: "lower", Margin: 0.05, Base: 512_345, Head: 548_210, Change: 0.07, Low: 0.041,
				High: 0.1, Chance: &chance, Verdict: results.GateRegression,
			},
			{
				Name: "errors", Unit: results.GateShare, Better: "lower", Margin: 0.005, Base: 0.001, Head: 0.0012,
				Change: 0.0002, Low: -0.0001, High: 0.0005, Verdict: results.GatePass,
			},
			{
				Name: "burst", Unit: "rps", Better: "higher", Margin: 0.05, Base: 1234, Head: 1201, Change: -0.027, Low: -0.06,
				High: 0.01, Verdict: results.GateInconclusive,
			},
		},
	}
	g.Blocks = append(g.Blocks, results.GateBlock{Dropped: "head: the client stalled"})
	none := results.Gate{
		Base: "a", Head: "b", Verdict: results.GateInvalid, Why: "4 of 4 blocks do not count", Metrics: g.Metrics,
	}
	golden(t, "gate", styles(), Gate(g), Gate(none))
}

// One host with several tiers, a tier that binds, and a peak that no CPU explains.
func TestDemandGolden(t *testing.T) {
	run := plainRun()
	run.Cells = run.Cells[:5]
	run.Cells[0].Demand = map[string]results.Demand{
		"web": {AtReference: 0.0009, AtCapacity: 0.0007, AtPeak: 0.0004, BoundRPS: 550, Host: "host-1"},
		"db":  {AtReference: 0.0003, AtCapacity: 0.0002, AtPeak: 0.0001, BoundRPS: 550, Host: "host-1"},
	}
	run.Cells[4].Demand = map[string]results.Demand{
		"web": {AtReference: 0.0002, AtPeak: 0.0001, BoundRPS: 2500, Host: "web-2"},
		"db":  {AtReference: 0.0003, AtCapacity: 0.00025, AtPeak: 0.00005, BoundRPS: 1900, Host: "db-1"},
	}
	golden(t, "demand", styles(), Demand(run))
}

// A run with every problem that a cell can have.
func TestLadderWithDoubtsGolden(t *testing.T) {
	golden(t, "doubts", styles(), Ladder(doubtfulRun()))
}

// Two engines and two values of a knob: a row is compared with one of the same configuration.
func TestLadderOfAMatrixGolden(t *testing.T) {
	golden(t, "matrix", styles(), Ladder(matrixRun()))
}

// Replicas with a lag, and a primary that died during a step at a fixed rate.
func TestLadderWithReplicasGolden(t *testing.T) {
	run := replicatedRun()
	golden(t, "replicas", styles(), append([]Table{Ladder(run)}, Faults(run)...)...)
}

// A stage without a cache, and a cache with stale answers and a restarted host.
func TestLadderWithACacheGolden(t *testing.T) {
	golden(t, "cache", styles(), Ladder(cachedRun()))
}

func TestAttackGolden(t *testing.T) {
	golden(t, "attack", styles(), Attack(plainStep(), "p99<100ms,errors<0.1%")...)
}

func TestAttackWithFailuresGolden(t *testing.T) {
	golden(t, "attack-failures", styles(), Attack(failingStep(), "p99<100ms,errors<0.1%")...)
}

func TestAttackOnTiersGolden(t *testing.T) {
	golden(t, "attack-tiers", styles(), Attack(tiersStep(), "p99<100ms,errors<0.1%")...)
}

func ns(n int64) *int64 { return &n }

func latency(count int64, p50, p99 int64) results.Latency {
	l := results.Latency{
		Count: count, P50: ns(p50), P90: ns(p50 * 2), P95: ns(p50 * 3), P99: ns(p99), Max: ns(p99 * 2), Mean: ns(p50),
	}
	if count >= 10_000 {
		l.P999 = ns(p99 + p99/2)
	}
	return l
}

func hostsOf(isolated bool, names ...string) []results.CellHost {
	var hosts []results.CellHost
	for _, name := range names {
		hosts = append(hosts, results.CellHost{Host: name, CPU: 0.1, Isolated: isolated})
	}
	return hosts
}

func cell(stage, workload string, capacity, low, high float64, hosts ...string) results.Cell {
	engines := map[string]string{"db": "sqlite"}
	if stage == "lb" {
		engines["lb"] = "balance"
	}
	return results.Cell{
		Stage: stage, Workload: workload, Engines: engines, Driver: "vegeta",
		Knobs: map[string]string{"web.hosts": "3", "lb.policy": "round_robin"},
		Hosts: hostsOf(true, hosts...), Units: float64(len(hosts)),
		CapacityRPS: capacity, CapacityLow: low, CapacityHigh: high, CapacityMethod: "pooled, 4 visits, 90 % interval",
		PeakRPS: 1.3 * capacity,
		SLO:     "p99<100ms,upload:p99<1s,errors<0.1%",
		Reference: &results.Step{
			Purpose: "reference", OfferedRPS: 200, Valid: true,
			Ledger:      results.Ledger{Scheduled: 2000, Sent: 2000, OK: 2000},
			ResponseAll: latency(2000, int64(1e9/capacity), int64(1e10/capacity)),
		},
		Limit: results.Limit{By: "web", Host: "web-1", Figure: "93% of its CPU budget", CPUShare: 0.93}, LimitedBy: "web",
		Valid: true,
	}
}

func plainRun() results.Run {
	run := results.Run{Schema: results.Schema, Run: "20260309-120000-00abcd", Complete: true, Cells: []results.Cell{
		cell("single", "read-heavy", 420, 400, 441, "host-1"),
		cell("single", "write-heavy", 300, 290, 310, "host-1"),
		cell("db-split", "read-heavy", 560, 540, 581, "web-1", "db-1"),
		cell("db-split", "write-heavy", 395.5, 380, 411, "web-1", "db-1"),
		cell("lb", "read-heavy", 1180, 1120, 1240, "lb-1", "web-1", "web-2", "web-3", "db-1"),
		cell("lb", "write-heavy", 702, 680, 725, "lb-1", "web-1", "web-2", "web-3", "db-1"),
	}}
	for i := range run.Cells[4:] {
		run.Cells[4+i].Units = 6
	}
	run.Cells[5].Limit = results.Limit{By: "db", Figure: "97% of its CPU budget", Next: "web", NextCPUShare: 0.61}
	gains(&run)
	return run
}

// gains sets the gains of all cells, with an interval of a tenth.
func gains(run *results.Run) {
	for i := range run.Cells {
		c := &run.Cells[i]
		if p := results.PreviousStage(run.Cells, i); p >= 0 {
			ratio := c.CapacityRPS / run.Cells[p].CapacityRPS
			c.Gain = &results.Gain{Over: run.Cells[p].Stage, Ratio: ratio, Low: ratio / 1.1, High: ratio * 1.1}
		}
	}
}

func doubtfulRun() results.Run {
	run := plainRun()
	run.Complete = false
	run.Warnings = []string{"the machine has 2 cores: the driver shares them with the system"}
	c := run.Cells

	// The client could not keep up, and every offered rate met the objective.
	c[0].Valid, c[0].CapacityHigh = false, 0
	c[0].Warnings = []string{"client lag p99 4.2ms > 1ms", "client CPU 91% > 85%"}
	c[0].Limit = results.Limit{By: "client", Figure: "91% of its CPU"}

	// No rate met the objective.
	c[3].Gain = nil
	c[1].CapacityRPS, c[1].CapacityLow, c[1].CapacityHigh = 0, 0, 25
	c[1].Steps = []results.Step{
		{OfferedRPS: 50, SLOBroken: "p99 > 100ms (9.0% of ops were slower, worst class: feed with 20.0%)"},
		{OfferedRPS: 25, SLOBroken: "upload p99 > 1s (3 of 120 ops were slower)"},
	}
	c[1].Limit = results.Limit{By: "unknown"}

	// The system could not be brought up.
	c[2] = results.Cell{
		Stage: "db-split", Workload: "read-heavy", Engines: map[string]string{"db": "sqlite"}, Driver: "vegeta",
		SLO:   c[0].SLO,
		Error: "web-1: exited before it was ready\nsee cells/db-split/read-heavy/logs/web-1.log",
	}

	// Too few samples in this cell, and failures in the next. Their reference rates differ.
	c[3].Reference.OfferedRPS = 100
	c[3].Reference.ResponseAll = results.Latency{Count: 900, P50: ns(2_000_000)}
	c[3].Hosts = hostsOf(false, "web-1", "db-1")
	c[3].Warnings = []string{"client lag p99 4.2ms > 1ms"}

	c[4].Reference.ResponseAll = results.Latency{Count: 2000, P50: ns(2_000_000)}
	c[4].Reference.Ledger = results.Ledger{Scheduled: 2000, Sent: 2000, OK: 1937, HTTPError: 60, Timeout: 3}
	c[4].Reference.Valid, c[4].Reference.Warnings = false, []string{"N = X * R is off by 7%"}

	c[5].Reference = nil
	return run
}

func matrixRun() results.Run {
	run := results.Run{Schema: results.Schema, Complete: true}
	add := func(c results.Cell, engine, hosts string) {
		c.Engines["db"] = engine
		c.Knobs = map[string]string{"web.hosts": hosts, "lb.policy": "round_robin"}
		c.Hosts = hostsOf(false, "host-1")
		run.Cells = append(run.Cells, c)
	}
	for i, engine := range []string{"sqlite", "postgres"} {
		for j, hosts := range []string{"2", "3"} {
			add(cell("single", "read-heavy", 400+float64(i*100), 390, 410), engine, hosts)
			add(cell("lb", "read-heavy", 800+float64(i*100+j*400), 790, 810), engine, hosts)
		}
	}
	gains(&run)
	return run
}

func replicatedRun() results.Run {
	run := plainRun()
	run.Cells = append(run.Cells[:0:0], run.Cells[4], run.Cells[4], run.Cells[4], run.Cells[4])
	for i := range run.Cells {
		c := &run.Cells[i]
		c.Reference = new(*c.Reference)
		c.Reference.Stale = &results.Stale{Reads: 900}
		c.Knobs = map[string]string{"db.replica_lag": []string{"0s", "0s", "200ms", "5ms"}[i]}
		if i == 0 {
			continue // without replicas, lost writes are not checked
		}
		c.Stage, c.Writes = "replicas", &results.Writes{Acknowledged: 4321}
	}
	fewSamples := run.Cells[2].Reference
	fewSamples.Stale = &results.Stale{
		Reads: 900, Stale: 123, RYWViolations: 4,
		AgeNS: results.Latency{Count: 123, P50: ns(90_000_000), P90: ns(180_000_000), Max: ns(204_000_000)},
	}
	c := &run.Cells[3]
	c.CapacityMethod, c.CapacityRPS, c.CapacityLow, c.CapacityHigh = results.MethodFixed, 0, 0, 0
	c.Limit = results.Limit{By: "unknown", Figure: "no limit was looked for"}
	c.Writes = &results.Writes{Acknowledged: 4321, Lost: 7, Ambiguous: 12, AmbiguousApplied: 3}
	c.Reference.Purpose = "fixed"
	c.Reference.Stale = &results.Stale{Reads: 90_000, Stale: 1234, AgeNS: latency(1234, 3_000_000, 6_000_000)}
	c.Reference.Events = []results.Event{
		{AtNS: 3_000_100_000, Text: "db-1: fault: 3s kill primary"},
		{AtNS: 3_600_000_000, Text: "db-2: is the primary of epoch 2"},
	}
	c.Reference.Outages = []results.Outage{{FromNS: 3_002_000_000, ToNS: 3_650_000_000, Failed: 120}}
	c.Steps = []results.Step{{Purpose: "warmup", Events: c.Reference.Events}, *c.Reference}
	c.Failovers = []results.Failover{{
		Epoch: 2, From: "db-1", To: "db-2", DetectNS: 412_000_000, FenceNS: 9_800_000, PromoteNS: 61_000_000,
		SwitchNS: 3_200_000, ReplaceNS: 0,
	}}
	return run
}

func cachedRun() results.Run {
	run := replicatedRun()
	run.Cells = run.Cells[:3]
	for i := range run.Cells[1:] {
		c := &run.Cells[1+i]
		c.Stage = "cache"
		c.Knobs = map[string]string{"cache.write": []string{"write_around", "write_back"}[i]}
		c.Reference.Cache = &results.CacheReads{Hits: 8_100, Misses: 900}
		c.Reference.Database = &results.DatabaseCalls{Reads: 900, Writes: 100 * int64(i)}
		c.Reference.Figures = []results.Figure{
			{Name: "cache_hits", Kind: "counter", Value: ns(8_100)},
			{
				Name: "cache_evictions", Title: "cache\nevictions", Doc: "evictions: entries removed to free memory",
				Kind: "counter", Value: ns(1_234), SinceStart: []string{"cache-2"}[:i],
			},
		}
		c.Reference.CacheNodes = []results.CacheNode{
			{
				Node: "cache-1", Hits: 5_000, Misses: 600, Evictions: 1_200,
				Entries: 300, Bytes: 900_000, LimitBytes: 1 << 20,
			},
			{
				Node: "cache-2", Hits: 3_100, Misses: 300, Evictions: 34,
				Entries: 250, Bytes: 700_000, LimitBytes: 1 << 20, SinceStart: i == 1,
			},
		}
		s := &results.Stale{
			Reads: 900, Stale: 23, Hits: 800,
			AgeNS: results.Latency{Count: 23, P50: ns(90_000_000), Max: ns(204_000_000)},
		}
		if i == 0 {
			s.StaleHits, s.HitAgeNS = 16, results.Latency{Count: 16, P50: ns(5_000_000), Max: ns(12_300_000)}
		}
		c.Reference.Stale = s
	}
	run.Cells[2].Writes = &results.Writes{Acknowledged: 4321, Lost: 17}
	return run
}

func plainStep() results.Step {
	return results.Step{
		Purpose: "attack", OfferedRPS: 500, SentRPS: 500.04, CompletedRPS: 499.96, Seconds: 30,
		Schedule: "constant", CatchUp: "send at once", OpsHash: "9f86d081884c7d65",
		ResponseNS: latency(15_000, 1_234_567, 9_876_543), ResponseAll: latency(15_000, 1_234_567, 9_876_543),
		ServiceNS: latency(15_000, 1_134_567, 9_776_543), WaitNS: latency(15_000, 81_234, 412_345),
		LagNS:  latency(15_000, 12_345, 98_765),
		Ledger: results.Ledger{Scheduled: 15_000, Sent: 15_000, OK: 15_000},
		Ops: map[string]results.OpStats{"get": {
			Count:       15_000,
			ResponseNS:  latency(15_000, 1_234_567, 9_876_543),
			ResponseAll: latency(15_000, 1_234_567, 9_876_543),
		}},
		Client: results.ClientUsage{
			CPUSeconds: 6.9, CPUShare: 0.23, StallMaxNS: 2_345_678, GCPauseMaxNS: 123_456,
			OutsideShare: 0.012, OutsideKnown: true,
		},
		BytesIn: 123_456_789, BytesOut: 2_345_678, Valid: true, SLOMet: true,
	}
}

// tiersStep returns a step of a system with database replicas and a cache.
func tiersStep() results.Step {
	s := plainStep()
	s.ServerCount = ns(15_000)
	s.Cache = &results.CacheReads{Hits: 8_100, Misses: 900}
	s.CacheNodes = []results.CacheNode{
		{
			Node: "cache-1", Hits: 5_000, Misses: 600, Evictions: 1_200, Expired: 31,
			Entries: 300, Bytes: 900_000, LimitBytes: 1 << 20,
			WriteBack: &results.WriteBack{Unflushed: 7, Flushed: 1_230, Refused: 4},
		},
		{Node: "cache-2", SinceStart: true, LimitBytes: 1 << 20},
	}
	s.Figures = []results.Figure{{
		Name: "cache_evictions", Title: "cache\nevictions", Doc: "evictions: removed entries",
		Kind: "counter", Value: ns(1_200),
	}}
	s.Database = &results.DatabaseCalls{Reads: 900, Writes: 12}
	s.Stale = &results.Stale{
		Reads: 900, Stale: 23, RYWViolations: 2,
		AgeNS: results.Latency{Count: 23, P50: ns(90_000_000), Max: ns(204_000_000)},
		Hits:  800, StaleHits: 1, HitAgeNS: results.Latency{Count: 1, Max: ns(12_300_000)},
	}
	return s
}

func failingStep() results.Step {
	s := plainStep()
	s.Valid, s.Warnings = false, []string{"op counts do not add up"}
	s.SLOMet, s.SLOBroken = false, "errors 2.03% > 0.1%, mostly: connection refused"
	s.Ledger = results.Ledger{
		Scheduled: 15_000, Unsent: 40, ConnectError: 10, Sent: 14_950,
		OK: 14_675, HTTPError: 200, TransportError: 50, Timeout: 20, InFlight: 5, SessionLost: 20,
	}
	s.ResponseNS.Clamped = 3
	s.ResponseAll = results.Latency{Count: 15_000, P50: ns(1_334_567), P90: ns(2_500_000), P95: ns(9_000_000)}
	s.Ops = map[string]results.OpStats{
		"feed": {
			Count: 14_000, Errors: 290, SessionLost: 20,
			ResponseNS: latency(13_690, 1_234_567, 9_876_543), ResponseAll: s.ResponseAll,
		},
		"upload": {
			Count: 500, Errors: 15,
			ResponseNS: results.Latency{
				Count: 485, P50: ns(61_234_567), P90: ns(161_234_567), P95: ns(1_261_234_567), Max: ns(2_000_000_000),
			},
			ResponseAll: results.Latency{
				Count: 500, P50: ns(61_300_000), P90: ns(170_000_000), P95: ns(1_500_000_000),
			},
		},
		"like": {
			Count:       500,
			ResponseNS:  latency(500, 3_000_000, 4_000_000),
			ResponseAll: latency(500, 3_000_000, 4_000_000),
		},
	}
	s.Causes = map[string]int64{
		"connection refused": 60, "503 Service Unavailable": 180, "timeout": 20, "\x1b[31mred": 5,
	}
	s.Outages = []results.Outage{{FromNS: 10_002_000_000, ToNS: 10_998_000_000, Failed: 180}}
	s.Events = []results.Event{
		{AtNS: 10_001_234_567, Text: "killed web-1"}, {AtNS: 12_345_678_901, Text: "web-1 serves again"},
	}
	s.Autoscaling = &results.Autoscaling{
		Decisions: []results.ScalingDecision{
			{AtNS: 15_000_400_000, From: 1, To: 2, Advice: 2, Metric: new(99.6), Reason: "CPU 100 % per host, target 60 %"},
			{
				AtNS: 30_001_000_000, From: 2, To: 2, Advice: 1, Metric: new(20.2), Limit: "window",
				Reason: "CPU 20 % per host, target 60 %; advice 1, but 2 in the last 5m0s",
			},
			{AtNS: 45_000_100_000, From: 2, To: 2, Advice: 2, Limit: "unknown", Reason: "no host has a known metric"},
		},
		Supply:      []results.Supply{{Serving: 1, Hosts: 1}, {AtNS: 16_000_000_000, Serving: 2, Hosts: 2}},
		HostSeconds: 104.25, Reversals: 0,
	}
	s.Hosts = []results.HostUsage{
		{Host: "lb-1", CPU: 0.2, Isolated: true, CPUSeconds: 3.21, CPUShare: 0.535},
		{
			Host: "web-1", CPU: 0.1, Isolated: false, CPUSeconds: 2.9, CPUShare: 0.967,
			ThrottledSeconds: 1.5, ThrottledShare: 0.081,
		},
	}
	return s
}
