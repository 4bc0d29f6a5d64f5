package main

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets/faults"
	"github.com/stagebench/stagebench/workloads/driver/vegeta"
)

// A cell is measured at one rate with faults. The faults and the reactions of the system are
// events of the step and of the timeline. No acknowledged write is lost.
func TestFaultsWhileOneRateIsMeasured(t *testing.T) {
	up, err := newLauncher(smallData(), slog.New(slog.NewTextHandler(io.Discard, nil)), func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	up.TemplateDir = templates()
	defer func() {
		if err := up.Budgets.Close(); err != nil {
			t.Error(err)
		}
	}()
	topology, err := ladder.Build(sut.LB, sut.Knobs{"web.hosts": "2"}, roomy)
	if err != nil {
		t.Fatal(err)
	}
	schedule, err := faults.Read([]byte(`
- {at: 500ms, do: kill, who: web}
- {at: 700ms, do: pause, who: primary}
- {at: 900ms, do: resume, who: primary}
`), "f.yaml")
	if err != nil {
		t.Fatal(err)
	}
	run, err := rundir.Create(filepath.Join(t.TempDir(), "run"), results.Manifest{})
	if err != nil {
		t.Fatal(err)
	}
	plan := cell.Quick()
	bench := &cell.Bench{
		Driver: vegeta.Driver{}, Plan: plan, SLO: results.DefaultSLO(), Seed: 1, Connections: 32,
		Run: run, Progress: silent{}, Up: up.up, Forecast: cell.NewForecast(plan, false),
	}
	fixed := &cell.Fixed{RPS: 50, Duration: 2 * time.Second, Faults: schedule}
	l := load.Load{Workload: shipped(t, "write-heavy")}
	c := measureOne(t, bench, cell.Spec{Topology: topology, Load: l, Fixed: fixed})
	if c.Error != "" || c.CapacityMethod != results.MethodFixed ||
		c.Reference == nil || c.Reference.Purpose != "fixed" || c.Reference.Stale == nil {
		t.Fatalf("cell %+v, want one fixed step with stale reads counted", c)
	}
	var events []string
	for _, e := range c.Reference.Events {
		events = append(events, e.Text)
	}
	order := []string{
		"web-1: fault: 500ms kill web", "web-1: killed on request",
		"db-1: fault: 700ms pause primary", "db-1: paused on request",
		"db-1: fault: 900ms resume primary", "db-1: resumed on request",
	}
	rest := strings.Join(events, "\n")
	for _, want := range order {
		_, after, found := strings.Cut(rest, want)
		if !found {
			t.Fatalf("event %q is missing or out of order:\n%s", want, strings.Join(events, "\n"))
		}
		rest = after
	}
	timeline, err := os.ReadFile(filepath.Join(run.Path(), "cells", "lb", "write-heavy", "timeline.csv"))
	for _, want := range order[:2] {
		if err != nil || !strings.Contains(string(timeline), want) {
			t.Errorf("error %v, want %q in the timeline:\n%s", err, want, timeline)
		}
	}
	w := c.Writes
	if w == nil || w.Acknowledged == 0 || w.Lost != 0 || w.AmbiguousApplied > w.Ambiguous || w.Unread != 0 {
		t.Errorf("writes %+v, want no lost and no unread write", w)
	}
	if s := c.Reference.Stale; s.Stale != 0 {
		t.Errorf("stale reads %+v, want none from a single database", s)
	}
}

// measureOne measures one cell.
func measureOne(t *testing.T, bench *cell.Bench, spec cell.Spec) (c results.Cell) {
	t.Helper()
	err := bench.Measure(t.Context(), []cell.Spec{spec}, func(cells []results.Cell) error {
		c = cells[0]
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return c
}
