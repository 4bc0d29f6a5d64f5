package scorecard_test

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/scorecard"
)

const second = int64(1e9)

// A failure belongs to the last kill before it, or to the kill at which it was in flight. A host is replaced when the
// last of its nodes serves.
func TestLosses(t *testing.T) {
	step := results.Step{
		OfferedRPS: 100, Seconds: 30,
		Outages: []results.Outage{
			{FromNS: 1 * second, ToNS: 2 * second, Failed: 7}, // before the first kill
			{FromNS: 5 * second, ToNS: 6 * second, Failed: 50},
			{FromNS: 9 * second, ToNS: 9 * second, Failed: 1},
			{FromNS: 14 * second, ToNS: 17 * second, Failed: 20}, // some were in flight at the second kill
		},
		Events: []results.Event{
			{AtNS: 1 * second, Text: "web-1: serving on 127.0.0.1:1"}, // an earlier restart
			{AtNS: 6 * second, Text: "web-1: serving on 127.0.0.1:1"},
			{AtNS: 7 * second, Text: "blob-1: serving on 127.0.0.1:2"},
			{AtNS: 18 * second, Text: "web-10: serving on 127.0.0.1:3"},
		},
	}
	got := scorecard.Losses(step, []scorecard.Kill{
		{Role: "web", Host: "host-1", Nodes: []string{"web-1", "blob-1"}, AtNS: 5 * second},
		{Role: "db", Host: "db-1", Nodes: []string{"db-1"}, AtNS: 15 * second},
	})
	four := 2 * second
	want := []scorecard.Loss{
		{
			Kill:   scorecard.Kill{Role: "web", Host: "host-1", Nodes: []string{"web-1", "blob-1"}, AtNS: 5 * second},
			Failed: 51, Due: 1000, OutageNS: 4 * second, ReplacedNS: &four,
		},
		{
			Kill:   scorecard.Kill{Role: "db", Host: "db-1", Nodes: []string{"db-1"}, AtNS: 15 * second},
			Failed: 20, Due: 1500, OutageNS: 3 * second,
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
	s := scorecard.Stage{Losses: got}
	if worst, ok := s.Worst(); !ok || worst.Host != "host-1" || s.Slowest() != nil {
		t.Errorf("worst %+v, slowest %v: want host-1, and none because db-1 was not replaced", worst, s.Slowest())
	}
	if _, ok := (scorecard.Stage{}).Worst(); ok {
		t.Error("the worst of no kills")
	}
}

// The cost of a million requests follows from the peak, the hosts and the prices.
func TestOf(t *testing.T) {
	prices := scorecard.Prices{Currency: "EUR", Sizes: []scorecard.Price{{1, 0.01}, {2, 0.03}}}
	larger := results.Cell{PeakRPS: 1250}
	s := scorecard.Of(scorecard.Measured{
		Peak:   results.Cell{Stage: "lb", Workload: "read-heavy", PeakRPS: 1000},
		Kills:  results.Cell{BringUpNS: 5, Writes: &results.Writes{Acknowledged: 9, Lost: 2}},
		Larger: &larger, Nodes: 4, Sizes: []float64{2, 1, 1, 0.5},
	}, prices)
	hours := 1e6 / 1000 / 3600
	if math.Abs(*s.HostHours-4*hours) > 1e-9 || math.Abs(*s.Money-hours*(0.03+3*0.01)) > 1e-12 || *s.Gain != 1.25 ||
		s.Lost != 2 || s.Acknowledged != 9 || s.Hosts != 4 || s.Nodes != 4 {
		t.Errorf("%+v", s)
	}
	failed := scorecard.Of(scorecard.Measured{Kills: results.Cell{Error: "no disk"}, Sizes: []float64{1}}, prices)
	if failed.Error != "no disk" || failed.Money != nil || failed.Gain != nil {
		t.Errorf("%+v", failed)
	}
	doubtful := scorecard.Of(scorecard.Measured{
		Peak:   results.Cell{PeakRPS: 5, Invalid: []string{"a"}},
		Kills:  results.Cell{Invalid: []string{"b"}, Writes: &results.Writes{Unread: 1}},
		Larger: &results.Cell{Error: "c", Invalid: []string{"d"}}, Sizes: []float64{1},
	}, prices)
	if len(doubtful.Notes) != 5 || doubtful.Gain != nil {
		t.Errorf("doubts %q", doubtful.Notes)
	}
}

// Sizings are compared with the first one, visit by visit. A tier costs what its hosts cost, and a request what all
// hosts cost.
func TestCompare(t *testing.T) {
	prices := scorecard.Prices{Currency: "EUR", Sizes: []scorecard.Price{{1, 0.01}, {3, 0.05}}}
	cell := func(rate float64, visits ...float64) results.Cell {
		return results.Cell{CapacityRPS: rate, Repeats: visits}
	}
	all := []scorecard.Sizing{
		{Hosts: 1, Units: 1, All: []float64{1, 1}, Cell: cell(100, 100, 100)},
		{Hosts: 1, Units: 3, All: []float64{3, 1}, Cell: cell(200, 200, 200)},
		{Hosts: 3, Units: 1, All: []float64{1, 1, 1, 1}, Cell: cell(250, 250, 250)},
		{Hosts: 9, Units: 1, All: []float64{1}, Cell: cell(0)},
		{Hosts: 1, Units: 1, All: []float64{1}, Cell: cell(100, 100, 100)},
	}
	all[4].Cell.Error = "no disk"
	scorecard.Compare(all, prices)
	for i, want := range []struct{ hour, gain, money float64 }{
		{0.01, 0, 0.02 / 0.36}, {0.05, 2, 0.06 / 0.72}, {0.03, 2.5, 0.04 / 0.9}, {0.09, 0, 0}, {0.01, 0, 0},
	} {
		s := all[i]
		var gain, money float64
		if g := s.Cell.Gain; g != nil && g.Low < g.Ratio && g.Ratio < g.High {
			gain = g.Ratio
		}
		if s.Money != nil {
			money = *s.Money
		}
		if math.Abs(s.Hour-want.hour)+math.Abs(gain-want.gain)+math.Abs(money-want.money) > 1e-9 || s.Base != (i == 0) {
			t.Errorf("sizing %d: %v an hour, gain %v, %v per million, want %+v", i, s.Hour, gain, money, want)
		}
	}
}

func TestPrices(t *testing.T) {
	const file = "currency: EUR\nsizes:\n- {units: 4, hour: 0.5}\n- {units: 1, hour: 0.1}\n"
	p, err := scorecard.ReadPrices([]byte(file), "p.yaml")
	if err != nil {
		t.Fatal(err)
	}
	for units, want := range map[float64]float64{0.5: 0.1, 1: 0.1, 1.0000000001: 0.1, 1.5: 0.5, 4: 0.5, 8: 1} {
		if got := p.Hour(units); got != want {
			t.Errorf("%v units cost %v, want %v", units, got, want)
		}
	}
	for text, want := range map[string]string{
		"":                         "currency or sizes is missing\nwant currency",
		"currency: EUR":            "currency or sizes is missing",
		"currency: EUR\nsize: []":  `p.yaml:2:1: unknown field "size"`,
		"sizes: [":                 "p.yaml:1:",
		strings.Repeat("#", 1<<17): "want at most",
		"currency: E\nsizes: [{units: 0, hour: 1}]":                      "a size of 0 units for 1 an hour",
		"currency: E\nsizes: [{units: 1, hour: -1}]":                     "a size of 1 units for -1 an hour",
		"currency: E\nsizes: [{units: 1, hour: 1}, {units: 1, hour: 2}]": "listed twice",
		"currency: E\nsizes: [{units: .inf, hour: 1}]":                   "want numbers above 0",
		"currency: E\nsizes: [{units: many, hour: 1}]":                   "p.yaml:2:",
	} {
		if _, err := scorecard.ReadPrices([]byte(text), "p.yaml"); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.60q: %v, want %q", text, err, want)
		}
	}
	if e := scorecard.ExamplePrices(); e.Hour(1) >= e.Hour(16)/16 {
		t.Error("a large host is not dearer than its share")
	}
}
