//go:build long

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut"
)

// TestPrimaryIsKilledTenTimes kills the primary ten times in a row under writes, for each engine and mode. It
// compares the report of lost writes with the contents of the databases. It takes about eight minutes.
func TestPrimaryIsKilledTenTimes(t *testing.T) {
	for name, knobs := range failovers() {
		t.Run(name, func(t *testing.T) {
			bound := 3 * time.Second
			if knobs["db.engine"] == "postgres" {
				bound = 8 * time.Second
			}
			r := bringUpSized(t, sut.Replicas, with(knobs, sut.Knobs{"blob.hosts": "1"}), roomy)
			var longest time.Duration
			acknowledged, lost := 0, 0
			for kill := 1; kill <= 10; kill++ {
				c := comment(t, r.Endpoints()[0], 8, 3000)
				c.awaitCount(t, 200)
				resumed := r.losePrimary(t, c)
				c.end()
				r.awaitCopies(t)
				primary, _ := r.databaseRoles()
				gone := c.missing(r.comments(t, primary))
				t.Logf("kill %d: writes resumed after %v; %d acknowledged, %d lost",
					kill, resumed.Round(time.Millisecond), c.count(), len(gone))
				r.lossIsReported(t, primary, gone)
				r.oldPrimaryIsFenced(t)
				longest = max(longest, resumed)
				acknowledged, lost = acknowledged+c.count(), lost+len(gone)
			}
			t.Logf("%s: 10 kills, writes resumed within %v; %d acknowledged, %d lost",
				name, longest.Round(time.Millisecond), acknowledged, lost)
			if longest > bound {
				t.Errorf("writes resumed after %v at the latest, want %v", longest, bound)
			}
			if knobs["db.sync"] == "sync" && lost > 0 {
				t.Errorf("sync lost %d acknowledged writes", lost)
			}
		})
	}
}

// TestReplicasGrowCapacity measures the capacity without replicas and with two, on both engines. The database
// must be the limit each time. It takes about six minutes.
func TestReplicasGrowCapacity(t *testing.T) {
	for name, knobs := range engines() {
		t.Run(name, func(t *testing.T) {
			skipWithoutEngines(t, knobs)
			none, two := replicated(t, name, "0"), replicated(t, name, "2")
			gain := two.CapacityRPS / none.CapacityRPS
			t.Logf("%s: no replica %.0f/s (%s: %s), two %.0f/s (%s: %s), gain x%.2f", name,
				none.CapacityRPS, none.LimitedBy, none.Limit.Figure, two.CapacityRPS, two.LimitedBy, two.Limit.Figure, gain)
			if !(gain >= 1.6) {
				t.Errorf("two replicas give %.2f times the capacity of none, want at least 1.6", gain)
			}
			if none.Limit.CPUShare < 0.9 {
				t.Errorf("without replicas limited by %s (%s): want the database at 90%% of its budget or more",
					none.LimitedBy, none.Limit.Figure)
			}
			for _, c := range []results.Cell{none, two} {
				if !c.Isolated() || c.LimitedBy != "db" {
					t.Errorf("limited by %s (%s), isolated %t: want the database",
						c.LimitedBy, c.Limit.Figure, c.Isolated())
				}
			}
		})
	}
}

// replicated measures the capacity for read-heavy with the given number of replicas. All other tiers are large.
func replicated(t *testing.T, engines, replicas string) results.Cell {
	t.Helper()
	return measured(t, "--stages", "replicas", "--workloads", "read-heavy", "--engines", engines,
		// With the default objective, bursts of a small host end the search before its CPU is used up.
		"--slo", "p99<300ms,upload:p99<2s,errors<0.1%",
		"--set", "db.replicas="+replicas, "--set", "web.cpu=2.5", "--set", "lb.cpu=3", "--set", "blob.hosts=1")
}

// measured runs `stagebench run` and returns its first cell.
func measured(t *testing.T, args ...string) results.Cell {
	t.Helper()
	h := startHarness(t, append([]string{"run", "--out", "runs/one"}, args...)...)
	if err := h.cmd.Wait(); err != nil {
		t.Fatalf("%v\n%s", err, h.output.String())
	}
	run, _, err := rundir.Read(filepath.Join(h.temp, "runs", "one"))
	if err != nil {
		t.Fatal(err)
	}
	return run.Cells[0]
}

// The faults of TestReplicaModes.
const (
	noFault       = "none"
	primaryKilled = "primary killed"
	primaryPaused = "primary paused for 4 s"
	replicaKilled = "replica killed"
)

// mode is one row of the table of replica modes.
type mode struct {
	engine, sync, preference, fault string
	capacity                        float64 // requests per second, without a fault
	cell                            results.Cell
}

// TestReplicaModes measures each mode of the replicas without a fault and while a database dies. It prints
// the results as a table and checks what docs/results.md concludes from the table. It takes about 20 minutes.
func TestReplicaModes(t *testing.T) {
	faults := []struct{ name, schedule string }{
		{noFault, ""},
		{primaryKilled, "- {at: 3s, do: kill, who: primary}\n"},
		{primaryPaused, "- {at: 3s, do: pause, who: db-1}\n- {at: 7s, do: resume, who: db-1}\n"},
		{replicaKilled, "- {at: 3s, do: kill, who: replica}\n"},
	}
	for _, engine := range []string{"embedded", "native"} {
		t.Run(engine, func(t *testing.T) {
			skipWithoutEngines(t, engines()[engine])
			var all []mode
			for _, sync := range []string{"async", "sync"} {
				for _, preference := range []string{"replica", "primary"} {
					knobs := []string{
						"--stages", "replicas", "--workloads", "write-heavy", "--engines", engine, "--set", "blob.hosts=1",
						"--set", "db.sync=" + sync, "--set", "db.read_preference=" + preference,
					}
					capacity := measured(t, knobs...).CapacityRPS
					for _, fault := range faults {
						args := append([]string{"--rate", "100", "--duration", "12s"}, knobs...)
						if fault.schedule != "" {
							path := filepath.Join(t.TempDir(), "faults.yaml")
							if err := os.WriteFile(path, []byte(fault.schedule), 0o600); err != nil {
								t.Fatal(err)
							}
							args = append(args, "--faults", path)
						}
						c := measured(t, args...)
						if c.Writes == nil || c.Reference == nil || c.Reference.Stale == nil {
							t.Fatalf("%s, %s, %s, %s: %+v", engine, sync, preference, fault.name, c)
						}
						all = append(all, mode{engine, sync, preference, fault.name, capacity, c})
					}
				}
			}
			t.Logf("\n%s", modeTable(all))
			checkModes(t, all)
		})
	}
}

// modeTable formats modes as a table.
func modeTable(all []mode) string {
	var table strings.Builder
	table.WriteString("| engine | db.sync | db.read_preference | capacity rps | fault | stale reads | oldest ms " +
		"| acknowledged | lost | longest outage ms |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, m := range all {
		s, oldest := m.cell.Reference.Stale, "-"
		if s.AgeNS.Max != nil && s.Stale > 0 {
			oldest = fmt.Sprintf("%.0f", float64(*s.AgeNS.Max)/1e6)
		}
		fmt.Fprintf(&table, "| %s | %s | %s | %.0f | %s | %.2f %% | %s | %d | %d | %d |\n",
			m.engine, m.sync, m.preference, m.capacity, m.fault, 100*s.Share(), oldest,
			m.cell.Writes.Acknowledged, m.cell.Writes.Lost, m.outage().Milliseconds())
	}
	return table.String()
}

// outage returns the longest time in which requests failed.
func (m mode) outage() (longest time.Duration) {
	for _, o := range m.cell.Reference.Outages {
		longest = max(longest, time.Duration(o.ToNS-o.FromNS))
	}
	return longest
}

// checkModes checks what docs/results.md says about the modes of one engine.
func checkModes(t *testing.T, all []mode) {
	t.Helper()
	capacity, outage := map[string]float64{}, map[string]time.Duration{} // sums by preference and by fault
	for _, m := range all {
		capacity[m.preference] += m.capacity
		outage[m.fault] += m.outage()
		row := fmt.Sprintf("%s, %s, reads from the %s, %s", m.engine, m.sync, m.preference, m.fault)
		stale, writes := m.cell.Reference.Stale, m.cell.Writes
		primaryFails := m.fault == primaryKilled || m.fault == primaryPaused
		if writes.Acknowledged < 200 {
			t.Errorf("%s: %d writes were acknowledged, want 200 or more", row, writes.Acknowledged)
		}
		// Async loses what the primary had not sent when it failed: at most a few writes.
		if may := m.sync == "async" && primaryFails; writes.Lost > 0 && (!may || writes.Lost*50 > writes.Acknowledged) {
			t.Errorf("%s: %d of %d acknowledged writes lost", row, writes.Lost, writes.Acknowledged)
		}
		if m.preference == "primary" && writes.Lost == 0 && stale.Stale > 0 {
			t.Errorf("%s: %d of %d reads were stale, want none", row, stale.Stale, stale.Reads)
		}
		if !primaryFails && stale.Share() > 0.01 {
			t.Errorf("%s: %d of %d reads were stale, want at most 1%%", row, stale.Stale, stale.Reads)
		}
		// A native primary that takes all reads and writes is overloaded at this rate: its outage may last.
		bound := 5 * time.Second
		switch {
		case !primaryFails:
			bound = 0
		case m.engine == "native" && m.preference == "replica":
			bound = 8 * time.Second
		case m.engine == "native":
			bound = time.Minute
		}
		if longest := m.outage(); longest > bound || primaryFails && longest == 0 {
			t.Errorf("%s: requests failed for %v, want at most %v, and some if the primary fails", row, longest, bound)
		}
	}
	if capacity["replica"] < 1.2*capacity["primary"] {
		t.Errorf("mean capacity: %.0f/s with reads from replicas, %.0f/s from the primary, want 1.2 times as much or more",
			capacity["replica"]/8, capacity["primary"]/8)
	}
	// A dead primary refuses probes at once; a paused one is noticed by its silence. On the native engine this
	// difference is smaller than that between two runs.
	if all[0].engine == "embedded" && outage[primaryPaused] <= outage[primaryKilled] {
		t.Errorf("mean outage: %v with a paused primary, %v with a killed one, want the first longer",
			outage[primaryPaused]/4, outage[primaryKilled]/4)
	}
}
