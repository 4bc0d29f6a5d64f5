package main

import (
	"crypto/sha256"
	"fmt"
	"math"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
)

// slicesRun is a script command that makes the directory of a run with slices for a gate:
//
//	slices DIRECTORY [SETTING=NUMBER...]
//
// A setting multiplies a metric (cpu, p50, p95, p99, burst), adds to one (errors), or is one of blocks, noise, the
// number of invalid slices, requests per slice, ops (1 = others), or incomplete.
func slicesRun(ts *testscript.TestScript, negated bool, args []string) {
	set := map[string]float64{"blocks": 12, "noise": 0.005, "requests": 10_000}
	for _, setting := range args[1:] {
		name, text, _ := strings.Cut(setting, "=")
		value, err := strconv.ParseFloat(text, 64)
		ts.Check(err)
		set[name] = value
	}
	ts.Check(writeSlices(ts.MkAbs(args[0]), set))
}

func writeSlices(path string, set map[string]float64) error {
	random := rand.New(rand.NewPCG(uint64(len(filepath.Base(path))), 1))
	factor := func(name string) float64 {
		f, given := set[name]
		if !given {
			f = 1
		}
		return f * math.Exp(set["noise"]*random.NormFloat64())
	}
	c := results.Cell{Stage: "single", Workload: "read-heavy", Valid: true}
	for n := range int(set["blocks"]) {
		sent := int64(set["requests"])
		failed := int64(float64(sent) * set["errors"])
		ns := func(usual float64, name string) *int64 { return new(int64(usual * factor(name))) }
		s := results.Step{
			Purpose: "reference", OfferedRPS: 1000, TimeoutNS: 5e9, OpsHash: fmt.Sprint(n, set["ops"]), Valid: true,
			Ledger: results.Ledger{Scheduled: sent, Sent: sent, OK: sent - failed, HTTPError: failed},
			ResponseAll: results.Latency{
				Count: sent, P50: ns(1e6, "p50"), P95: ns(3e6, "p95"), P99: ns(9e6, "p99"),
			},
			Nodes: []results.NodeUsage{{CPUSeconds: float64(sent) * 5e-4 * factor("cpu")}},
		}
		if float64(n) < set["invalid"] {
			s.Valid, s.Invalid = false, []string{"something outside the run took 60% of the machine's CPU"}
		}
		c.Steps = append(c.Steps, s, results.Step{Purpose: "peak", Seconds: 2, GoodputRPS: 2000 * factor("burst")})
	}
	m := results.Manifest{Schema: results.Schema, Run: "20260102-030405-000001", Started: time.Unix(0, 0)}
	m.Cores = int(set["cores"])
	dir, err := rundir.Create(path, m)
	if err != nil {
		return err
	}
	return dir.WriteSummary(results.Run{
		Schema: results.Schema, Run: m.Run, Complete: set["incomplete"] == 0, Cells: []results.Cell{c},
	})
}

// Output that cannot be written turns a pass into a failure, and a regression stays one.
func TestGateWithoutOutput(t *testing.T) {
	t.Parallel()
	full, err := os.OpenFile("/dev/full", os.O_WRONLY, 0)
	if err != nil {
		t.Skip("no /dev/full: " + err.Error())
	}
	t.Cleanup(func() { _ = full.Close() })
	base, same, slower := t.TempDir()+"/a", t.TempDir()+"/aa", t.TempDir()+"/aaa"
	for path, cpu := range map[string]float64{base: 1, same: 1, slower: 1.3} {
		set := map[string]float64{"blocks": 12, "noise": 0.005, "requests": 10_000, "cpu": cpu}
		if err := writeSlices(path, set); err != nil {
			t.Fatal(err)
		}
	}
	for head, want := range map[string]int{same: exit.Failed, slower: exit.Missed} {
		cmd := exec.Command(os.Args[0], "gate", "--base", base, "--head", head)
		cmd.Stdout = full
		_ = cmd.Run() // its status is checked below
		if got := cmd.ProcessState.ExitCode(); got != want {
			t.Errorf("%s: exit status %d, want %d", head, got, want)
		}
	}
}

// Two services that are there already. The head hashes 8 MiB for each request; a test on a busy machine may find only
// disturbed blocks. Both get the same number of requests in each block.
func TestGateOfServices(t *testing.T) {
	t.Parallel()
	var urls []string
	for _, hashed := range []int{0, 8 << 20} {
		server := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
			sha256.Sum256(make([]byte, hashed))
		}))
		t.Cleanup(server.Close)
		urls = append(urls, server.URL)
	}
	out := t.TempDir() + "/run"
	stdout, stderr, status := commandOutput(t, "gate", "--base", urls[0], "--head", urls[1], "--rate", "50",
		"--burst", "0", "--slice", "1s", "--warmup", "100ms", "--out", out)
	run, _, err := rundir.Read(out)
	if err != nil || run.Gate == nil || !run.Complete {
		t.Fatalf("%v, gate %+v\n%s", err, run.Gate, stderr)
	}
	g := run.Gate
	want := map[string]int{results.GateRegression: exit.Missed, results.GateInvalid: exit.Invalid}
	if status != want[g.Verdict] || !strings.Contains(stdout, "Gate: "+g.Verdict) || len(run.Cells) != 2 {
		t.Errorf("verdict %s, exit status %d, want regression, or invalid on a busy machine\n%s%s",
			g.Verdict, status, stdout, stderr)
	}
	if g.Verdict == results.GateRegression && g.Metrics[0].Change < 1 {
		t.Errorf("p50 changed by %v, want at least +100 %%", g.Metrics[0].Change)
	}
	reference := func(c results.Cell) []results.Step {
		return slices.DeleteFunc(slices.Clone(c.Steps), func(s results.Step) bool { return s.Purpose != "reference" })
	}
	base, head := reference(run.Cells[0])[1:], reference(run.Cells[1]) // the first slice of the base chose the rate
	if len(base) != len(g.Blocks) || len(head) != len(g.Blocks) {
		t.Fatalf("%d and %d slices in %d blocks", len(base), len(head), len(g.Blocks))
	}
	for i := range base {
		if base[i].OpsHash != head[i].OpsHash || base[i].Ledger.Scheduled != head[i].Ledger.Scheduled {
			t.Errorf("block %d: base and head had other requests", i+1)
		}
	}
}

// An interrupted gate of two binaries keeps what it measured, and leaves nothing behind.
func TestGateIsInterrupted(t *testing.T) {
	t.Parallel()
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGKILL} {
		t.Run(signal.String(), func(t *testing.T) {
			t.Parallel()
			h := startHarness(t, "gate", "--base", os.Args[0], "--rate", "20", "--burst", "0", "--slice", "1s",
				"--out", "runs/gate")
			eventually(t, "the second block begins", func() bool { return strings.Contains(h.output.String(), "block 2: ") })
			segments := h.segments()
			if err := h.cmd.Process.Signal(signal); err != nil {
				t.Fatal(err)
			}
			if signal == syscall.SIGKILL {
				h.killed(t, "gate", segments)
			} else {
				_ = h.cmd.Wait() // its error is the status
				if got := h.cmd.ProcessState.ExitCode(); got != exit.Interrupted {
					t.Errorf("exit status %d, want %d", got, exit.Interrupted)
				}
				h.nothingLeft(t, "gate", segments)
			}
			run, m, err := rundir.Read(filepath.Join(h.temp, "runs", "gate"))
			if err != nil || run.Complete || run.Gate == nil || len(run.Gate.Blocks) != 1 || m.Config["base"] != os.Args[0] {
				t.Errorf("%v, %+v, base %v: want an incomplete run with one block", err, run.Gate, m.Config["base"])
			}
		})
	}
}
