//go:build long

package main

import (
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
)

// TestInterruptedHundredTimes interrupts a hundred commands at random times: while systems start, warm up and are
// measured, and while a trace is read. It takes about half an hour.
func TestInterruptedHundredTimes(t *testing.T) {
	for _, i := range interruptions(t, 100, 25*time.Second) {
		t.Run(i.String(), func(t *testing.T) { interrupt(t, i) })
	}
}

// TestParentKilledInTime kills a harness with SIGKILL. Its nodes must end within 2 s.
func TestParentKilledInTime(t *testing.T) { parentKilled(t, 2*time.Second) }

// TestCapacityGrowsWithWebHosts measures the capacity with one and with three web hosts, on
// both kinds of engines. Balancer and database are so large that the web tier is the limit.
// It takes about four minutes.
func TestCapacityGrowsWithWebHosts(t *testing.T) {
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			if name == "native" {
				skipWithoutEngines(t, knobs)
			}
			one, three := webHosts(t, name, 1), webHosts(t, name, 3)
			gain := three.CapacityRPS / one.CapacityRPS
			t.Logf("%s: 1 web host %.0f/s (%s: %s), 3 web hosts %.0f/s (%s: %s), gain x%.2f", name,
				one.CapacityRPS, one.LimitedBy, one.Limit.Figure, three.CapacityRPS, three.LimitedBy, three.Limit.Figure, gain)
			if !(gain >= 2) {
				t.Errorf("three web hosts have %.2f times the capacity of one, want at least 2", gain)
			}
			for _, c := range []results.Cell{one, three} {
				if !c.Isolated() {
					t.Error("the hosts were not isolated, so the result proves nothing")
				}
				if c.LimitedBy != "web" || c.Limit.CPUShare < 0.9 {
					t.Errorf("limited by %s (%s), want the web tier at 90%% of its budget or more", c.LimitedBy, c.Limit.Figure)
				}
			}
		})
	}
}

// webHosts measures stage lb with this number of web hosts.
func webHosts(t *testing.T, engines string, n int) results.Cell {
	t.Helper()
	h := startHarness(t, "run", "--stages", "lb", "--workloads", "read-heavy",
		"--engines", engines, "--out", "runs/scaling",
		"--set", "db.cpu=5", "--set", "lb.cpu=4", "--set", "web.hosts="+strconv.Itoa(n))
	if err := h.cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, h.output.String())
	}
	run, _, err := rundir.Read(filepath.Join(h.temp, "runs", "scaling"))
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("\n%s", h.output.String())
	return run.Cells[0]
}

// TestFrozenSystemsEnd interrupts and kills a run while one of its systems is frozen. All processes must end: a frozen
// one does not see that its standard input closes, but the kernel continues it when its parent dies.
func TestFrozenSystemsEnd(t *testing.T) {
	for name, knobs := range engines() {
		for _, signal := range []os.Signal{os.Interrupt, os.Kill} {
			t.Run(name+" "+signal.String(), func(t *testing.T) {
				skipWithoutEngines(t, knobs)
				h := startHarness(t, "run", "--stages", "single,replicas", "--workloads", "read-heavy", "--engines", name)
				eventually(t, "the second visit has begun, and the first system is frozen", func() bool {
					return strings.Contains(h.output.String(), "\n2/8 ")
				})
				if err := h.cmd.Process.Signal(signal); err != nil {
					t.Fatal(err)
				}
				_ = h.cmd.Wait() // its error is the signal
				h.gone(t, 5*time.Second)
				if left := h.groups(); signal == os.Interrupt && len(left) > 0 {
					t.Errorf("control groups are left: %q", left)
				}
			})
		}
	}
}
