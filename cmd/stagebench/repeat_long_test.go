//go:build long

package main

import (
	"flag"
	"fmt"
	"math"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
)

var measuredRuns = flag.String("runs", "", "judge the runs in this directory instead of measuring new ones")

// TestFiguresRepeat measures four stages under both workloads eight times, spread over at least 90 minutes. It prints
// how much the figures of each cell moved, and fails if they moved more than they may. It takes about 100 minutes.
func TestFiguresRepeat(t *testing.T) {
	const runs, spread = 8, 90 * time.Minute
	var all []results.Run
	if *measuredRuns != "" {
		dirs, err := filepath.Glob(filepath.Join(*measuredRuns, "*"))
		if err != nil {
			t.Fatal(err)
		}
		for _, dir := range dirs {
			all = append(all, readRun(t, dir))
		}
	} else {
		begin := time.Now()
		for n := range runs {
			next := time.Until(begin.Add(spread / (runs - 1) * time.Duration(n)))
			wait := time.NewTimer(next) // the machine has to change between two runs, and nothing announces that
			<-wait.C
			h := startHarness(t, "run", "--stages", "single,lb,replicas,cache", "--out", "runs/one")
			if err := h.cmd.Wait(); err != nil {
				t.Fatalf("%v\n%s", err, h.output.String())
			}
			all = append(all, readRun(t, filepath.Join(h.temp, "runs", "one")))
		}
	}
	if len(all) < runs {
		t.Fatalf("%d runs, want %d", len(all), runs)
	}
	t.Log(judgeRepeats(t, all))
}

func readRun(t *testing.T, dir string) results.Run {
	t.Helper()
	run, _, err := rundir.Read(dir)
	if err != nil {
		t.Fatal(err)
	}
	return run
}

// judgeRepeats returns a table in Markdown.
func judgeRepeats(t *testing.T, runs []results.Run) string {
	t.Helper()
	var table strings.Builder
	fmt.Fprintf(&table, "\n| stage | workload | capacity rps | cv | intervals with the median | peak rps | cv | "+
		"gain | cv | invalid |\n%s|\n", strings.Repeat("|---", 10))
	for i, c := range runs[0].Cells {
		var capacities, peaks, gains []float64
		invalid := 0
		for _, run := range runs {
			other := run.Cells[i]
			capacities, peaks = append(capacities, other.CapacityRPS), append(peaks, other.PeakRPS)
			if other.Gain != nil {
				gains = append(gains, other.Gain.Ratio)
			}
			if !other.Valid {
				invalid++
			}
		}
		capacity, peak, hold := middle(capacities), middle(peaks), 0
		for _, run := range runs {
			if other := run.Cells[i]; other.CapacityLow <= capacity && capacity <= other.CapacityHigh {
				hold++
			}
		}
		gain := "| - | - |"
		if len(gains) > 0 {
			gain = fmt.Sprintf("| x%.2f | %.0f %% |", middle(gains), 100*variation(gains))
		}
		fmt.Fprintf(&table, "| %s | %s | %.0f | %.0f %% | %d of %d | %.0f | %.0f %% %s %d |\n", c.Stage, c.Workload,
			capacity, 100*variation(capacities), hold, len(runs), peak, 100*variation(peaks), gain, invalid)
		name := c.Stage + " " + c.Workload
		for figure, limit := range map[string]struct{ got, most float64 }{
			"capacity": {variation(capacities), 0.10}, "peak": {variation(peaks), 0.06}, "gain": {variation(gains), 0.10},
		} {
			if limit.got > limit.most {
				t.Errorf("%s: the %s has a coefficient of variation of %.1f%%, want at most %.0f%%",
					name, figure, 100*limit.got, 100*limit.most)
			}
		}
		if hold < len(runs)-1 {
			t.Errorf("%s: %d of %d intervals hold the median of all capacities", name, hold, len(runs))
		}
	}
	return table.String()
}

// middle returns the median.
func middle(values []float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	n := len(sorted)
	return (sorted[(n-1)/2] + sorted[n/2]) / 2
}

// variation returns the coefficient of variation: the standard deviation divided by the mean; 0 for fewer than two
// values.
func variation(values []float64) float64 {
	if len(values) < 2 {
		return 0
	}
	var sum, squares float64
	for _, v := range values {
		sum += v
	}
	mean := sum / float64(len(values))
	for _, v := range values {
		squares += (v - mean) * (v - mean)
	}
	return math.Sqrt(squares/float64(len(values)-1)) / mean
}
