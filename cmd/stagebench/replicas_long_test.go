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

// TestPrimaryIsKilledTenTimes kills the primary ten times in a row under writes,
// per engine and mode, and compares what the report says with a reading of the
// stores. It takes about eight minutes.
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
				loss := r.losePrimary(t, c)
				c.end()
				r.awaitCopies(t)
				primary, _ := r.databaseRoles()
				loss.lost = c.missing(r.comments(t, primary))
				t.Logf("kill %d: writes resumed after %v; %d acknowledged, %d lost", kill, loss.resumed.Round(time.Millisecond), c.count(), len(loss.lost))
				r.lossIsReported(t, primary, loss.lost)
				r.oldPrimaryIsFenced(t)
				longest, acknowledged, lost = max(longest, loss.resumed), acknowledged+c.count(), lost+len(loss.lost)
			}
			t.Logf("%s: 10 kills, writes resumed within %v; %d acknowledged, %d lost", name, longest.Round(time.Millisecond), acknowledged, lost)
			if longest > bound {
				t.Errorf("writes resumed after %v at the latest, want %v", longest, bound)
			}
			if knobs["db.sync"] == "sync" && lost > 0 {
				t.Errorf("sync lost %d acknowledged writes", lost)
			}
		})
	}
}

// TestReplicasGrowCapacity measures the database as the limit, without replicas
// and with two, on both engines. It takes about six minutes.
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
				t.Errorf("without replicas limited by %s (%s): want the database at 90%% of its budget or more", none.LimitedBy, none.Limit.Figure)
			}
			for _, c := range []results.Cell{none, two} {
				if !c.Isolated() || c.LimitedBy != "db" {
					t.Errorf("limited by %s (%s), isolated %t: want the database", c.LimitedBy, c.Limit.Figure, c.Isolated())
				}
			}
		})
	}
}

// replicated measures read-heavy capacity with that many replicas, and everything
// but the databases large.
func replicated(t *testing.T, engines, replicas string) results.Cell {
	t.Helper()
	return measured(t, "--stages", "replicas", "--workloads", "read-heavy", "--engines", engines,
		"--slo", "p99<300ms,upload:p99<2s,errors<0.1%", // by the default one, bursts of a small host end the search before its CPU does
		"--set", "db.replicas="+replicas, "--set", "web.cpu=2.5", "--set", "lb.cpu=3", "--set", "blob.hosts=1")
}

// measured runs one cell.
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

// TestReplicaModes prints what each mode of the replicas gives and costs, in good
// times and when a database dies. It takes about 20 minutes.
func TestReplicaModes(t *testing.T) {
	const rate = "100"
	faults := []struct{ name, schedule string }{
		{"none", ""},
		{"primary killed", "- {at: 3s, do: kill, who: primary}\n"},
		{"primary paused for 4 s", "- {at: 3s, do: pause, who: db-1}\n- {at: 7s, do: resume, who: db-1}\n"},
		{"replica killed", "- {at: 3s, do: kill, who: replica}\n"},
	}
	var table strings.Builder
	table.WriteString("| engine | db.sync | db.read_preference | capacity rps | fault | stale reads | oldest ms | acknowledged | lost | longest outage ms |\n|---|---|---|---|---|---|---|---|---|---|\n")
	for _, engine := range []string{"embedded", "native"} {
		skipWithoutEngines(t, engines()[engine])
		for _, sync := range []string{"async", "sync"} {
			for _, preference := range []string{"replica", "primary"} {
				knobs := []string{"--stages", "replicas", "--workloads", "write-heavy", "--engines", engine, "--set", "blob.hosts=1", "--set", "db.sync=" + sync, "--set", "db.read_preference=" + preference}
				capacity := measured(t, knobs...).CapacityRPS
				for _, fault := range faults {
					args := append([]string{"--rate", rate, "--duration", "12s"}, knobs...)
					if fault.schedule != "" {
						path := filepath.Join(t.TempDir(), "faults.yaml")
						if err := os.WriteFile(path, []byte(fault.schedule), 0o600); err != nil {
							t.Fatal(err)
						}
						args = append(args, "--faults", path)
					}
					table.WriteString(modeRow(measured(t, args...), engine, sync, preference, fault.name, capacity))
				}
				t.Logf("\n%s", table.String())
			}
		}
	}
}

// modeRow is one row of the table of modes.
func modeRow(c results.Cell, engine, sync, preference, fault string, capacity float64) string {
	var longest int64
	for _, o := range c.Reference.Outages {
		longest = max(longest, o.ToNS-o.FromNS)
	}
	share, oldest := "-", "-"
	if s := c.Reference.Stale; s != nil {
		share = fmt.Sprintf("%.2f %%", 100*s.Share())
		if s.AgeNS.Max != nil && s.Stale > 0 {
			oldest = fmt.Sprintf("%.0f", float64(*s.AgeNS.Max)/1e6)
		}
	}
	writes := results.Writes{}
	if c.Writes != nil {
		writes = *c.Writes
	}
	return fmt.Sprintf("| %s | %s | %s | %.0f | %s | %s | %s | %d | %d | %d |\n", engine, sync, preference, capacity, fault, share, oldest,
		writes.Acknowledged, writes.Lost, time.Duration(longest).Milliseconds())
}
