package cell

import (
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"time"
)

// Forecast says how long visits take: by the plan, corrected by earlier runs on this machine. It belongs to one
// goroutine.
type Forecast struct {
	plan    Plan
	native  bool
	seconds map[string]float64 // that visits took in earlier runs and in this one, by key
}

// NewForecast returns the forecast for a plan. Native says that the systems have native engines, which start more
// slowly. Without a readable file of earlier runs, it is only less exact.
func NewForecast(plan Plan, native bool) *Forecast {
	return &Forecast{plan: plan, native: native, seconds: readSeconds()}
}

// Typical times of visits that were never measured on this machine.
const (
	bringUp    = 2 * time.Second        // start, logins and stop with embedded engines
	bringUpDB  = 4 * time.Second        // the same with native engines
	betweenTwo = 150 * time.Millisecond // steps: metrics are read, and ops in flight are awaited
)

// Visit returns the expected duration of the nth visit of a cell, counted from 0.
func (f *Forecast) Visit(s Spec, fixed *Fixed, n int) time.Duration {
	start := bringUp
	if f.native {
		start = bringUpDB
	}
	start += f.plan.WarmupSlice * time.Duration(f.plan.WarmupSlices+1) / 2
	switch {
	case s.Load.Times != nil:
		return start + s.Load.Length
	case fixed != nil:
		return start + fixed.Duration
	}
	if known, ok := f.seconds[f.key(s, n)]; ok {
		return time.Duration(known * float64(time.Second))
	}
	steps := f.plan.Search.First
	if n > 0 {
		steps = f.plan.Search.Steps
		if f.plan.Freeze {
			start = f.plan.WarmupSlice
		}
	}
	each := cut + (3*f.plan.Step.Min+f.plan.Step.Max)/4
	return start + f.plan.Reference + cut + f.plan.Peak + time.Duration(steps)*each + time.Duration(steps+3)*betweenTwo
}

// Learn records how long the nth visit of a cell took.
func (f *Forecast) Learn(s Spec, n int, took time.Duration) { f.seconds[f.key(s, n)] = took.Seconds() }

// Save keeps what was learned for later runs.
func (f *Forecast) Save() error {
	all := readSeconds() // another run may have changed them
	maps.Copy(all, f.seconds)
	text, err := json.MarshalIndent(all, "", "  ")
	if err != nil {
		return err
	}
	path, err := secondsFile()
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	// A rename replaces the file at once, so that another run never reads half of it.
	temporary := fmt.Sprintf("%s.%d", path, os.Getpid())
	if err := os.WriteFile(temporary, text, 0o644); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// key names a visit. Only the first one starts the system and searches, so all others take about the same time.
func (f *Forecast) key(s Spec, n int) string {
	return fmt.Sprintf("%s %s %s %d", f.plan.Mode, s.Topology.Digest(), s.Load.Workload.Name(), min(n, 1))
}

// secondsFile returns the file of what was learned on this machine.
func secondsFile() (string, error) {
	dir, err := os.UserCacheDir()
	return filepath.Join(dir, "stagebench", "visits.json"), err
}

// readSeconds returns what earlier runs have learned, empty if that cannot be read.
func readSeconds() map[string]float64 {
	seconds := map[string]float64{}
	path, err := secondsFile()
	if err != nil {
		return seconds
	}
	if text, err := os.ReadFile(path); err != nil || json.Unmarshal(text, &seconds) != nil || seconds == nil {
		return map[string]float64{}
	}
	return seconds
}
