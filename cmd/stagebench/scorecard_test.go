package main

import (
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/scorecard"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

// stageOf builds a stage with the units of a machine of two cores.
func stageOf(t *testing.T, stage sut.Stage, knobs sut.Knobs) sut.Topology {
	t.Helper()
	topology, err := ladder.Build(stage, knobs, 0.1)
	if err != nil {
		t.Fatal(err)
	}
	return topology
}

// A host of each role is killed, the primary at last. The network between users and origin is no host.
func TestVictims(t *testing.T) {
	t.Parallel()
	o := scorecardOptions{pause: 10 * time.Second}
	for stage, want := range map[sut.Stage][]string{
		sut.Single:   {"db+blob+web host-1"},
		sut.DBSplit:  {"web web-1", "db+blob db-1"},
		sut.Replicas: {"lb lb-1", "web web-1", "replica db-2", "primary+blob db-1"},
		sut.Queued: {
			"edge edge-1", "lb lb-1", "web web-1", "replica db-2", "cache cache-1", "session session-1", "queue broker-1",
			"worker worker-1", "primary+blob db-1",
		},
		sut.Sharded: {
			"edge edge-1", "lb lb-1", "web web-1", "replica db-2", "cache cache-1", "session session-1", "queue broker-1",
			"worker worker-1", "primary+blob db-1", "primary db-3",
		},
	} {
		var got []string
		for i, k := range o.victims(stageOf(t, stage, sut.Knobs{"cdn.delay": "20ms"})) {
			got = append(got, k.Role+" "+k.Host)
			if k.AtNS != int64(beforeKills)+int64(i)*int64(o.pause) {
				t.Errorf("%s: %s is killed at %v", stage, k.Host, time.Duration(k.AtNS))
			}
		}
		if diff := cmp.Diff(want, got); diff != "" {
			t.Errorf("%s (-want +got)\n%s", stage, diff)
		}
	}
}

// Each stage has a cell for the peak, one for the kills, and one with one more web host where that is possible.
func TestScorecardPlan(t *testing.T) {
	t.Parallel()
	o := scorecardOptions{pause: 10 * time.Second}
	j := job{
		loads: []load.Load{{}}, plan: cell.Quick(),
		topologies: []sut.Topology{
			stageOf(t, sut.Single, nil), stageOf(t, sut.LB, nil), stageOf(t, sut.LB, sut.Knobs{"web.hosts": "16"}),
		},
	}
	all, cells := o.plan(j)
	var variants []string
	for _, c := range cells {
		variants = append(variants, string(c.Topology.Stage)+" "+c.Variant)
	}
	want := []string{
		"single peak", "single kills", "lb peak", "lb kills", "lb web.hosts=4",
		"lb peak", "lb kills", // 17 hosts are too many
	}
	if diff := cmp.Diff(want, variants); diff != "" {
		t.Errorf("cells (-want +got)\n%s", diff)
	}
	kills := cells[all[1].kills].Fixed
	if len(kills.Faults) != 3 || kills.Duration != beforeKills+30*time.Second || kills.Faults[2].Target != "db-1" {
		t.Errorf("%+v", kills)
	}
	measured := make([]results.Cell, len(cells))
	for i, c := range cells {
		measured[i] = results.Cell{Stage: string(c.Topology.Stage), PeakRPS: float64(100 + 25*i)}
	}
	stages := conclude(all, measured, scorecard.ExamplePrices())
	if len(stages) != 3 || stages[0].Gain != nil || stages[1].PeakRPS != 150 || *stages[1].Gain != 200.0/150 ||
		stages[2].Gain != nil || stages[1].Hosts != 5 || stages[1].Nodes != 6 {
		t.Errorf("%+v", stages)
	}
	if got := killsOf(all)["lb"]; !slices.Contains(got, "3s lb-1 (lb)") {
		t.Errorf("kills %q", got)
	}
}
