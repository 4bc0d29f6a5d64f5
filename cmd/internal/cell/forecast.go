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
	earlier map[string]float64 // seconds that visits took in earlier runs, by key
	learned map[string]float64 // the same, in this run
}

// NewForecast returns the forecast for a plan. Native says that the systems have native engines, which start more
// slowly. Without a readable file of earlier runs, it is only less exact.
func NewForecast(plan Plan, native bool) *Forecast {
	return &Forecast{plan: plan, native: native, earlier: readSeconds(), learned: map[string]float64{}}
}

// Typical times of visits that were never measured on this machine.
const (
	bringUp       = 1600 * time.Millisecond // start and logins with embedded engines
	bringUpNative = 3200 * time.Millisecond // the same with native engines
	takeDown      = time.Second             // writes are read back, and the system stops
	betweenTwo    = 150 * time.Millisecond  // steps: metrics are read, and ops in flight are awaited
	again         = 0.04                    // share of the time for steps that are measured again
)

// Visit returns the expected duration of the nth visit of a cell, counted from 0.
func (f *Forecast) Visit(s Spec, n int) time.Duration {
	start := bringUp
	if f.native {
		start = bringUpNative
	}
	// The shortest warm-up has two slices.
	warmUp := f.plan.WarmupSlice * time.Duration(f.plan.WarmupSlices+2) / 2
	switch {
	case s.Load.Times != nil:
		return start + s.Load.Length + takeDown
	case s.Fixed != nil:
		return start + warmUp + s.Fixed.Duration + takeDown
	}
	for _, known := range []map[string]float64{f.learned, f.earlier} {
		if seconds, ok := known[f.key(s, n)]; ok {
			return time.Duration(seconds * float64(time.Second))
		}
	}
	steps := f.plan.Search.First
	if n > 0 {
		steps = f.plan.Search.Steps
	}
	each := cut + (3*f.plan.Step.Min+f.plan.Step.Max)/4
	measured := cut + f.plan.Peak + f.plan.WarmupSlice + f.plan.Reference
	measured += time.Duration(steps)*each + time.Duration(steps+3)*betweenTwo
	if n == 0 || !f.plan.Freeze {
		measured += start + warmUp
	}
	if n == f.plan.Visits-1 || !f.plan.Freeze {
		measured += takeDown
	}
	return time.Duration((1 + again) * float64(measured))
}

// Learn records how long the nth visit of a cell took.
func (f *Forecast) Learn(s Spec, n int, took time.Duration) { f.learned[f.key(s, n)] = took.Seconds() }

// Save keeps what was learned for later runs.
func (f *Forecast) Save() error {
	all := readSeconds() // another run may have changed them
	maps.Copy(all, f.learned)
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

// key names a visit. The first one starts the system and looks for the capacity, and the last one reads back what was
// written. All others take about the same time.
func (f *Forecast) key(s Spec, n int) string {
	kind := "middle"
	switch n {
	case 0:
		kind = "first"
	case f.plan.Visits - 1:
		kind = "last"
	}
	return fmt.Sprintf("%s %v %s %s %s", f.plan.Mode, f.plan.Step.Max, s.digest(), s.Load.Workload.Name(), kind)
}

// digest identifies the target.
func (s Spec) digest() string {
	if s.Attached != nil {
		return s.Attached.Endpoint.String()
	}
	return s.Topology.Digest()
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
