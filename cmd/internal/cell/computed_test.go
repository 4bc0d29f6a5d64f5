package cell

import (
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/metrics"
)

// The busiest label is compared with the mean of all labels, summed over the nodes.
func TestBusiestFigure(t *testing.T) {
	declared := []ladder.Figure{{Name: "busiest", Metric: "ops", From: []sut.Role{sut.Web}, Kind: ladder.Busiest}}
	at := func(node string, one, two, three float64) scrape {
		return scrape{node: targets.NodeStatus{Node: node, Role: sut.Web}, series: metrics.Series{
			startedMetric: 1, `ops{shard="1"}`: one, `ops{shard="2"}`: two, `ops{shard="3"}`: three,
		}}
	}
	before := []scrape{at("web-1", 500, 0, 0), at("web-2", 0, 0, 0)}
	got := figuresOf(declared, deltas(before, []scrape{at("web-1", 550, 10, 0), at("web-2", 40, 30, 20)}))
	if len(got) != 1 || got[0].Value == nil || *got[0].Value != 180 { // 90, 40 and 20: the mean is 50
		t.Errorf("%+v, want 180 %%", got)
	}
	if none := figuresOf(declared, deltas(before, before)); len(none) != 1 || *none[0].Value != 0 {
		t.Errorf("%+v without operations, want 0", none)
	}
}

// A mean is computed from the increases of two counters, summed over the nodes.
func TestMeanFigure(t *testing.T) {
	declared := []ladder.Figure{{
		Name: "rows", Metric: "rows_total", Per: "photos_total", From: []sut.Role{sut.Worker}, Kind: ladder.Mean,
	}}
	at := func(node string, rows, photos float64) scrape {
		return scrape{node: targets.NodeStatus{Node: node, Role: sut.Worker}, series: metrics.Series{
			startedMetric: 1, "rows_total": rows, "photos_total": photos,
		}}
	}
	before := []scrape{at("worker-1", 500, 10), at("worker-2", 0, 0)}
	got := figuresOf(declared, deltas(before, []scrape{at("worker-1", 520, 11), at("worker-2", 35, 2)}))
	if len(got) != 1 || got[0].Value == nil || *got[0].Value != 18 { // 55 of 3
		t.Errorf("%+v, want 18", got)
	}
	if none := figuresOf(declared, deltas(before, before)); len(none) != 1 || *none[0].Value != 0 {
		t.Errorf("%+v without photos, want 0", none)
	}
}
