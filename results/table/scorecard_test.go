package table

import (
	"testing"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/scorecard"
)

// Stages with all answers, with a host that was not replaced, and with an error.
func TestScorecardGolden(t *testing.T) {
	loss := func(role, host string, failed, due, outage, replaced int64) scorecard.Loss {
		l := scorecard.Loss{
			Kill: scorecard.Kill{Role: role, Host: host, Nodes: []string{host}}, Failed: failed, Due: due, OutageNS: outage,
		}
		if replaced > 0 {
			l.ReplacedNS = &replaced
		}
		return l
	}
	stages := []scorecard.Stage{
		{
			Stage: "single", Workload: "read-heavy", Rate: 100, PeakRPS: 203.4, P50NS: new(int64(6_400_000)),
			Losses:       []scorecard.Loss{loss("db+blob+web", "host-1", 148, 1000, 1_480_000_000, 1_390_000_000)},
			Acknowledged: 51, SessionsLost: 256, Nodes: 3, Hosts: 1, BringUpNS: 341_000_000,
			HostHours: new(1.366), Money: new(0.01366),
		},
		{
			Stage: "replicas", Workload: "read-heavy", Rate: 100, PeakRPS: 1113, P50NS: new(int64(1_850_000)),
			Losses: []scorecard.Loss{
				loss("lb", "lb-1", 120, 1000, 1_190_000_000, 1_110_000_000),
				loss("web", "web-1", 14, 1000, 400_000_000, 1_100_000_000), loss("replica", "db-2", 0, 1000, 0, 0),
				loss("primary", "db-1", 31, 1000, 910_000_000, 2_005_000_000),
			},
			Acknowledged: 210, Lost: 3, SessionsLost: 84, StaleShare: 0.0012, Gain: new(1.184), Nodes: 8, Hosts: 7,
			BringUpNS: 1_219_000_000, HostHours: new(1.747), Money: new(0.0202),
			Notes: []string{"the peak: 1 of 1 steps cannot be trusted"},
		},
		{Stage: "cache", Workload: "read-heavy", Error: "web-2 did not start: no space left on device", Nodes: 9, Hosts: 8},
	}
	golden(t, "scorecard", styles(), Scorecard(stages, "USD"), Kills(stages))
}

// A sizing without figures, and one that is not valid.
func TestSizingsGolden(t *testing.T) {
	cell := func(rate float64, limit string) results.Cell {
		return results.Cell{
			Stage: "lb", Workload: "read-heavy", CapacityRPS: rate, CapacityLow: 0.9 * rate, CapacityHigh: 1.1 * rate,
			CapacityMethod: "pooled, 5 visits, 90 % interval", LimitedBy: limit, Valid: true,
			Repeats: []float64{0.98 * rate, 1.02 * rate},
			Reference: &results.Step{Valid: true, ResponseAll: results.Latency{
				P50: new(int64(2_000_000)), P99: new(int64(21_000_000)), Count: 1125,
			}},
		}
	}
	all := []scorecard.Sizing{
		{Hosts: 1, Units: 1, All: []float64{2, 1, 1}, Cell: cell(214, "web")},
		{Hosts: 1, Units: 3, All: []float64{2, 3, 1}, Cell: cell(561, "web")},
		{Hosts: 3, Units: 1, All: []float64{2, 1, 1, 1, 1}, Cell: cell(583, "db")},
	}
	all[2].Cell.Valid, all[2].Cell.Invalid = false, []string{"the client was late"}
	scorecard.Compare(all, scorecard.ExamplePrices())
	failed := []scorecard.Sizing{{Hosts: 1, Units: 1, Cell: results.Cell{Stage: "db-split", Error: "no disk"}}}
	scorecard.Compare(failed, scorecard.ExamplePrices())
	golden(t, "sizings", styles(), Sizings(append(all, failed...), "web", "USD"))
}
