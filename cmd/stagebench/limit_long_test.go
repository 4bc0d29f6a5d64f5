//go:build long

package main

import (
	"fmt"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut/ladder"
)

// TestLimitByIntervention checks what limits each cell: with one and a half times the CPU for that tier, the capacity
// grows by a fifth or more, and with as much more for another tier it does not. It prints a table, and takes about 45
// minutes.
func TestLimitByIntervention(t *testing.T) {
	const enough, least = 1.2, 8
	right := 0
	rows := "\n| stage | workload | limited by | capacity rps | with more for it | for another tier |\n" +
		strings.Repeat("|---", 6) + "|\n"
	for _, workload := range []string{"read-heavy", "write-heavy"} {
		for _, info := range ladder.Stages() {
			args := []string{"--stages", string(info.Stage), "--workloads", workload}
			base := measured(t, args...)
			more := func(role string) float64 {
				size, err := strconv.ParseFloat(base.Knobs[role+".cpu"], 64)
				if err != nil {
					return 0
				}
				return measured(t, append(args, "--set", fmt.Sprintf("%s.cpu=%v", role, 1.5*size))...).CapacityRPS
			}
			named, other := more(base.LimitedBy)/base.CapacityRPS, otherTier(base)
			row, good := "-", named >= enough
			if other != "" {
				ratio := more(other) / base.CapacityRPS
				row, good = fmt.Sprintf("%s x%.2f", other, ratio), good && ratio < enough
			}
			if good {
				right++
			}
			rows += fmt.Sprintf("| %s | %s | %s | %.0f | x%.2f | %s |\n", info.Stage, workload, base.LimitedBy,
				base.CapacityRPS, named, row)
			t.Log(rows)
		}
	}
	if right < least {
		t.Errorf("the named limit is right in %d cells, want at least %d", right, least)
	}
}

// otherTier returns a tier that is not the limit of a cell: the one with the most CPU to spare, on another host; "" if
// there is only one host.
func otherTier(c results.Cell) string {
	other := ""
	for role, d := range c.Demand {
		limit := c.Demand[c.LimitedBy]
		if d.Host != limit.Host && c.Knobs[role+".cpu"] != "" && (other == "" || d.BoundRPS > c.Demand[other].BoundRPS) {
			other = role
		}
	}
	return other
}

// TestHogsAreFlagged measures a cell while another process uses a core, or the disk. In at least nine of ten runs the
// cell is invalid, and no valid one is off by more than 15 %. It takes about 30 minutes.
func TestHogsAreFlagged(t *testing.T) {
	const runs, least, most = 10, 9, 0.15
	args := []string{"--stages", "lb", "--workloads", "read-heavy"}
	truth := measured(t, args...).CapacityRPS
	for name, command := range map[string]string{
		"CPU":  `while :; do :; done`,
		"disk": `while :; do dd if=/dev/zero of="$0" bs=1M count=256 conv=fsync 2>/dev/null; done`,
	} {
		flagged := 0
		for n := range runs {
			hog := exec.CommandContext(t.Context(), "sh", "-c", command, filepath.Join(t.TempDir(), "hog"))
			if err := hog.Start(); err != nil {
				t.Fatal(err)
			}
			c := measured(t, args...)
			_ = hog.Process.Kill()
			_ = hog.Wait() // its error is the kill
			off := c.CapacityRPS/truth - 1
			t.Logf("%s hog, run %d: valid %v, capacity %.0f (%+.0f%%): %s", name, n, c.Valid, c.CapacityRPS, 100*off,
				strings.Join(c.Warnings, "; "))
			if !c.Valid {
				flagged++
			} else if off > most || off < -most {
				t.Errorf("%s hog: a valid cell is off by %+.0f%%", name, 100*off)
			}
		}
		if flagged < least {
			t.Errorf("%s hog: %d of %d cells were flagged, want at least %d", name, flagged, runs, least)
		}
	}
}

// TestAnnouncedTime runs five selections twice. The second time, each run takes as long as it announced, within 15 %.
// It takes about 40 minutes.
func TestAnnouncedTime(t *testing.T) {
	for _, args := range [][]string{
		{"--quick"},
		{"--quick", "--stages", "single,cache", "--workloads", "read-heavy"},
		{"--stages", "single", "--workloads", "write-heavy"},
		{"--stages", "lb,replicas", "--workloads", "read-heavy"},
		{"--stages", "replicas", "--engines", "native", "--workloads", "read-heavy"},
	} {
		if slices.Contains(args, "native") {
			skipWithoutEngines(t, engines()["native"])
		}
		for n := range 2 {
			announced, took := timed(t, args...)
			ratio := took.Seconds() / announced.Seconds()
			t.Logf("run %d of %v: announced %v, took %v (x%.2f)", n+1, args, announced, took, ratio)
			if n > 0 && (ratio > 1.15 || ratio < 0.85) {
				t.Errorf("%v took %v, announced were %v", args, took, announced)
			}
		}
	}
}

// timed measures and returns how long it was announced to take, and how long it took.
func timed(t *testing.T, args ...string) (announced, took time.Duration) {
	t.Helper()
	h := startHarness(t, append([]string{"run", "--out", "runs/one"}, args...)...)
	begin := time.Now()
	if err := h.cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, h.output.String())
	}
	took = time.Since(begin).Round(time.Second)
	_, text, _ := strings.Cut(h.output.String(), ", about ")
	line, _, _ := strings.Cut(text, "\n")
	announced, err := time.ParseDuration(line)
	if err != nil {
		t.Fatal(err)
	}
	return announced, took
}
