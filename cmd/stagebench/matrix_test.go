package main

import (
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/results/rundir"
)

// repeatFiles returns the time of the last change of each complete repeat of a matrix, by its directory.
func repeatFiles(t *testing.T, run string) map[string]time.Time {
	t.Helper()
	found := map[string]time.Time{}
	err := filepath.WalkDir(run, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.Name() != "repeat.json" {
			return nil // nothing was begun yet
		}
		info, err := entry.Info()
		found[strings.TrimPrefix(filepath.Dir(path), run+"/cells/")] = info.ModTime()
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// A matrix that is killed at ten random moments goes on each time, and ends with the same cells, none of them twice.
// A repeat that was complete is never measured again.
func TestKilledMatrixIsResumed(t *testing.T) {
	skipWithoutEngines(t, engines()["native"])
	dir := t.TempDir()
	file, run := filepath.Join(dir, "matrix.yaml"), filepath.Join(dir, "run")
	const text = `
stages: [single, db-split]
engines: [embedded, native]
knobs: {web.gzip: [true, false]}
rates: 20
repeats: 3
duration: 1s
quick: true
`
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	want := allRepeats()
	seed := max(*interruptSeed, 1)
	t.Logf("to repeat it: -interrupt-seed %d", seed)
	random := rand.New(rand.NewPCG(seed, 0))
	complete := map[string]time.Time{}
	check := func(when string) {
		t.Helper()
		now := repeatFiles(t, run)
		for name, changed := range complete {
			if !now[name].Equal(changed) {
				t.Errorf("%s: the complete repeat %s was measured again", when, name)
			}
		}
		complete = now
	}
	for n := range 10 {
		// Counted in repeats and not only in seconds, so that a slow machine also gets on.
		further, later := random.IntN(3), time.Duration(random.Int64N(int64(3*time.Second)))
		when := fmt.Sprintf("kill %d, %v after %d repeats", n+1, later, further)
		h := startHarness(t, "matrix", file, "--out", run)
		before := len(complete)
		eventually(t, when, func() bool { return len(repeatFiles(t, run)) >= before+further })
		time.AfterFunc(later, func() { _ = h.cmd.Process.Kill() })
		_ = h.cmd.Wait() // its error is the kill
		check(when)
		if further > 0 && before > 0 && !strings.Contains(h.output.String(), " are done") {
			t.Errorf("%s: it does not say what is done", when)
		}
		eventually(t, "all processes have ended", func() bool { return len(h.processes(t)) == 0 })
	}
	if len(complete) == 0 || len(complete) == len(want) {
		t.Errorf("after ten kills, %d of %d repeats are complete: the test shows nothing", len(complete), len(want))
	}
	last := startHarness(t, "matrix", file, "--out", run, "--rows", "stage", "--columns", "engines", "--figure", "errors")
	if err := last.cmd.Wait(); err != nil {
		t.Fatalf("the last command: %v", err)
	}
	check("the last command")
	var got []string
	for name := range complete {
		got = append(got, name)
	}
	if slices.Sort(got); !slices.Equal(got, want) {
		t.Errorf("complete repeats:\n%q\nwant\n%q", got, want)
	}
	checkCells(t, run)
}

// allRepeats lists the directories of the repeats of that matrix.
func allRepeats() (all []string) {
	for _, stage := range []string{"single", "db-split"} {
		for _, engines := range []string{"embedded", "native"} {
			for _, gzip := range []string{"true", "false"} {
				for n := range 3 {
					all = append(all, fmt.Sprintf("%s/read-heavy/engines=%s,web.gzip=%s/repeat-%d", stage, engines, gzip, n+1))
				}
			}
		}
	}
	slices.Sort(all)
	return all
}

// checkCells checks the summary of a matrix of eight cells with three repeats.
func checkCells(t *testing.T, run string) {
	t.Helper()
	r, m, err := rundir.Read(run)
	if err != nil || !r.Complete || len(r.Cells) != 8 {
		t.Fatalf("%d cells, complete %v, %v", len(r.Cells), r.Complete, err)
	}
	seen := map[string]bool{}
	for _, c := range r.Cells {
		name := c.Stage + " " + c.Variant
		if seen[name] {
			t.Errorf("cell %s is there twice", name)
		}
		seen[name] = true
		measured := 0
		for _, s := range c.Steps {
			if s.Purpose == "fixed" {
				measured++
			}
		}
		if measured != 3 || len(c.Speeds) != 3 || c.Error != "" || c.Reference == nil || c.Reference.Seconds < 2.9 {
			t.Errorf("cell %s has %d steps and %d speeds, error %q", name, measured, len(c.Speeds), c.Error)
		}
		if gzip := strings.Contains(c.Variant, "web.gzip=true"); c.Knobs["web.gzip"] != fmt.Sprint(gzip) {
			t.Errorf("cell %s has web.gzip=%s", name, c.Knobs["web.gzip"])
		}
	}
	if resumed, _ := m.Config["resumed"].([]any); len(resumed) < 3 {
		t.Errorf("the manifest says that it was resumed %v", resumed)
	}
}

// After SIGKILL and after SIGTERM, the down command runs and what the up command started has ended, also a daemon.
func TestMatrixEndsItsTargets(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM} {
		address := porttest.Free(t).String()
		dir := t.TempDir()
		file, calls := filepath.Join(dir, "matrix.yaml"), filepath.Join(dir, "calls")
		text := fmt.Sprintf(`
target:
  url: http://%s/
  up: |
    echo up >> calls
    setsid sleep 1000 &
    %s freezer --listen %s --frozen 1ms
  down: echo stopping && echo down >> calls
rates: 20
repeats: 1
duration: 1h
quick: true
`, address, os.Args[0], address)
		if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		h := startHarness(t, "matrix", file, "--out", filepath.Join(dir, "run"), "--verbose")
		eventually(t, "load is sent", func() bool { return strings.Contains(h.output.String(), "warmup") })
		if err := h.cmd.Process.Signal(signal); err != nil {
			t.Fatal(err)
		}
		_ = h.cmd.Wait() // its error is the signal
		eventually(t, "all processes have ended", func() bool { return len(h.processes(t)) == 0 })
		if got, err := os.ReadFile(calls); err != nil || string(got) != "up\ndown\n" {
			t.Errorf("%v: the commands said %q, %v", signal, got, err)
		}
		if signal == syscall.SIGTERM && !strings.Contains(h.output.String(), "To measure what is missing: ") {
			t.Error("it does not say how to go on")
		}
	}
}
