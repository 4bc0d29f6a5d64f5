package cell

import (
	"encoding/json"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
)

// Repeats that were stored as JSON are joined to the same figures as visits in one process, with merged histograms.
func TestStoredRepeatsAreJoined(t *testing.T) {
	const repeats = 5
	spec := Spec{Load: load.Load{Workload: likes{}}}
	bench := &Bench{SLO: results.DefaultSLO(), Plan: Default(), Driver: &scripted{}}
	inProcess := bench.newRun(spec, bench.describe(spec))
	var stored []Repeat
	for range repeats {
		d := &scripted{limit: 300}
		r := d.visits(t, 1)
		repeat := Repeat{r.cell, r.estimator, r.quiet.estimator, r.quiet.peaks, r.reference}
		inProcess.join(repeat)
		text, err := json.Marshal(repeat)
		if err != nil {
			t.Fatal(err)
		}
		var read Repeat
		if err := json.Unmarshal(text, &read); err != nil {
			t.Fatal(err)
		}
		stored = append(stored, read)
	}
	want, _ := inProcess.concluded()
	got := bench.Join(spec, stored).Cell
	// Compared as JSON: a list that is empty and one that is missing are the same.
	wantText, err := json.MarshalIndent(want, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	gotText, err := json.MarshalIndent(got, "", " ")
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(wantText), string(gotText)); diff != "" {
		t.Errorf("joined (-in process +stored):\n%s", diff)
	}
	var scheduled int64
	for _, r := range stored {
		scheduled += r.Reference.Parts[0].Ledger.Scheduled
	}
	if s := got.Reference; s == nil || s.Ledger.Scheduled != scheduled || s.ResponseAll.Count != scheduled ||
		s.ResponseAll.P99 == nil || stored[0].Reference.Parts[0].ResponseAll.P99 != nil {
		t.Errorf("the reference step is not that of merged histograms: %+v", s)
	}
	if len(got.Repeats) != repeats || len(got.Peaks) != repeats || !got.HasInterval() ||
		!(got.CapacityLow < got.CapacityRPS && got.CapacityRPS < got.CapacityHigh) {
		t.Errorf("capacity %v in %v..%v by %v, peaks %v", got.CapacityRPS, got.CapacityLow, got.CapacityHigh,
			got.Repeats, got.Peaks)
	}
	if none := Conclude([]Joined{bench.Join(spec, nil)}); len(none) != 0 {
		t.Errorf("a cell without a repeat: %+v", none)
	}
}
