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

// A cell at one rate with a fault in it: the fault, and what the system says of
// it, are events of the measured step and of the timeline, and every acknowledged
// write is found again.
func TestFaultsWhileOneRateIsMeasured(t *testing.T) {
	up, err := newBringer(smallData(), slog.New(slog.NewTextHandler(io.Discard, nil)), func(string) {})
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
	schedule, err := faults.Read([]byte("- {at: 500ms, do: kill, who: web}\n- {at: 700ms, do: pause, who: primary}\n- {at: 900ms, do: resume, who: primary}"), "f.yaml")
	if err != nil {
		t.Fatal(err)
	}
	run, err := rundir.Create(filepath.Join(t.TempDir(), "run"), results.Manifest{})
	if err != nil {
		t.Fatal(err)
	}
	plan := cell.Quick()
	bench := &cell.Bench{
		Driver: vegeta.Driver{}, Plan: plan, SLO: results.DefaultSLO(), Seed: 1, Connections: 32, Run: run, Progress: silent{}, Up: up.up,
		Fixed: &cell.Fixed{RPS: 50, Duration: 2 * time.Second, Faults: schedule},
	}
	c := bench.Measure(t.Context(), topology, load.Load{Workload: shipped(t, "write-heavy")})
	if c.Error != "" || c.CapacityMethod != results.MethodFixed || c.Reference == nil || c.Reference.Purpose != "fixed" || c.Reference.Stale == nil {
		t.Fatalf("%+v", c)
	}
	var said []string
	for _, e := range c.Reference.Events {
		said = append(said, e.Text)
	}
	order := []string{"web-1: fault: 500ms kill web", "web-1: killed on request", "db-1: fault: 700ms pause primary", "db-1: paused on request", "db-1: fault: 900ms resume primary", "db-1: resumed on request"}
	text := strings.Join(said, "\n")
	for _, want := range order {
		_, after, found := strings.Cut(text, want)
		if !found {
			t.Fatalf("no %q, or not in its place, among the events:\n%s", want, strings.Join(said, "\n"))
		}
		text = after
	}
	timeline, err := os.ReadFile(filepath.Join(run.Path(), "cells", "lb", "write-heavy", "timeline.csv"))
	for _, want := range order[:2] {
		if err != nil || !strings.Contains(string(timeline), want) {
			t.Errorf("%v: the timeline lacks %q:\n%s", err, want, timeline)
		}
	}
	w := c.Writes
	if w == nil || w.Acknowledged == 0 || w.Lost != 0 || w.AmbiguousApplied > w.Ambiguous || w.Unread != 0 {
		t.Errorf("writes %+v: want all that were acknowledged to be there", w)
	}
	if s := c.Reference.Stale; s.Stale != 0 {
		t.Errorf("stale %+v: one database has no stale answers", s)
	}
}
