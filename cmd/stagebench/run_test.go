package main

import (
	"encoding/json"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/compare"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
)

// manifestOf returns the manifest of a run over these stages, as read from JSON. It has only
// the knobs.
func manifestOf(t *testing.T, replicas string, stages ...sut.Stage) (m results.Manifest) {
	t.Helper()
	var all []sut.Topology
	for _, stage := range stages {
		topology, err := ladder.Build(stage, sut.Knobs{"db.replicas": replicas}, roomy)
		if err != nil {
			t.Fatal(err)
		}
		all = append(all, topology)
	}
	text, err := json.Marshal(map[string]any{"config": map[string]any{"knobs": knobsOfAll(all)}})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(text, &m); err != nil {
		t.Fatal(err)
	}
	return m
}

// The manifest has the effective knobs of all stages, not only those of the first one. So the
// comparison of two runs shows a knob that differs in later stages only.
func TestKnobsOfAllStagesAreInTheManifest(t *testing.T) {
	var all []sut.Stage
	for _, info := range ladder.Stages() {
		all = append(all, info.Stage)
	}
	two, four := manifestOf(t, "2", all...), manifestOf(t, "4", all...)
	knobs := four.Config["knobs"].(map[string]any)
	want := map[string]any{}
	for i, stage := range all {
		want[string(stage)] = "4"
		if i < slices.Index(all, sut.Replicas) {
			want[string(stage)] = "0"
		}
		if stage == sut.Sharded {
			want[string(stage)] = knobs["shard.replicas"]
		}
	}
	if diff := cmp.Diff(any(want), knobs["db.replicas"]); diff != "" {
		t.Errorf("db.replicas (-want +got)\n%s", diff)
	}
	if got := knobs["web.hosts"]; got != "3" {
		t.Errorf("web.hosts %v, want 3: all stages have the same value", got)
	}
	if got := manifestOf(t, "4", sut.Replicas).Config["knobs"].(map[string]any)["db.replicas"]; got != "4" {
		t.Errorf("db.replicas of a run of one stage is %v, want 4", got)
	}
	var named []string
	for _, d := range compare.Compare([]compare.Run{{Manifest: two}, {Manifest: four}}).Differences {
		named = append(named, d.What)
	}
	if diff := cmp.Diff([]string{"knobs.db.replicas"}, named); diff != "" {
		t.Errorf("differences (-want +got)\n%s", diff)
	}
}

// Hosts that together have exactly what the driver leaves fit.
func TestHostsFit(t *testing.T) {
	t.Parallel()
	const most = 15
	size := (float64(cell.Cores()) - cell.Reserve(cell.Cores())) / most
	for n, want := range map[int]bool{most: true, most + 1: false} {
		topology := sut.Topology{Stage: sut.Stateless}
		for range n {
			topology.Hosts = append(topology.Hosts, sut.Host{CPU: size})
		}
		if err := fits(topology); (err == nil) != want {
			t.Errorf("%d hosts of %v cores: %v, want that they fit: %t", n, size, err, want)
		}
	}
}
