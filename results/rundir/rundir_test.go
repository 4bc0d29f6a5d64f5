package rundir

import (
	"bufio"
	"encoding/csv"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results"
)

// childEnv is the environment variable that makes the test binary write a run and
// wait to be killed.
const childEnv = "RUNDIR_TEST_CHILD"

func TestMain(m *testing.M) {
	if path := os.Getenv(childEnv); path != "" {
		os.Exit(writeUntilKilled(path, os.Stdout))
	}
	os.Exit(m.Run())
}

func TestNewIDSortsByTime(t *testing.T) {
	at := time.Date(2026, 3, 9, 23, 59, 59, 0, time.FixedZone("", 3600))
	early, late := NewID(at, 0xffffffff), NewID(at.Add(time.Second), 0)
	if early != "20260309-225959-ffffff" || late != "20260309-230000-000000" {
		t.Errorf("ids %s and %s", early, late)
	}
	if early >= late {
		t.Errorf("%s does not sort before %s", early, late)
	}
}

func TestReadReturnsWhatWasWritten(t *testing.T) {
	path := filepath.Join(t.TempDir(), "runs", "one")
	m := results.Manifest{
		Run: "one", Command: []string{"stagebench", "run"}, Started: time.Unix(1700000000, 0).UTC(),
		Seed: math.MaxUint64, Warnings: []string{"doubt"},
	}
	d, err := Create(path, m)
	if err != nil {
		t.Fatal(err)
	}
	r, _, err := Read(path)
	if err != nil || r.Run != "one" || r.Complete {
		t.Fatalf("a fresh run reads as %+v, %v", r, err)
	}

	p99 := int64(12_345_678)
	want := results.Run{
		Schema: results.Schema, Run: "one", Complete: true, Warnings: []string{},
		Cells: []results.Cell{{
			Stage: "lb", CapacityRPS: 1180, Repeats: []float64{}, Warnings: []string{},
			Steps: []results.Step{{OfferedRPS: 500, ResponseNS: results.Latency{Count: 9, P99: &p99}}},
		}},
	}
	if err := d.WriteSummary(want); err != nil {
		t.Fatal(err)
	}
	r, gotManifest, err := Read(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(want, r); diff != "" {
		t.Errorf("summary (-written +read):\n%s", diff)
	}
	m.Schema = results.Schema
	if diff := cmp.Diff(m, gotManifest); diff != "" {
		t.Errorf("manifest (-written +read):\n%s", diff)
	}
}

func TestListsAreNeverNull(t *testing.T) {
	d := create(t)
	if err := d.WriteSummary(results.Run{Cells: []results.Cell{{}}}); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(d.Path(), "summary.json"))
	if err != nil {
		t.Fatal(err)
	}
	var summary struct{ Cells []map[string]any }
	if err := json.Unmarshal(text, &summary); err != nil {
		t.Fatal(err)
	}
	for _, list := range []string{"steps", "repeats", "warnings"} {
		if summary.Cells[0][list] == nil {
			t.Errorf("%s is null", list)
		}
	}
}

func TestCreateRefusesADirectoryThatHoldsARun(t *testing.T) {
	d := create(t)
	_, err := Create(d.Path(), results.Manifest{Run: "two"})
	want := d.Path() + " already holds a run\nchoose another directory with --out DIR, or remove this one first"
	if err == nil || err.Error() != want {
		t.Errorf("got %v, want %s", err, want)
	}
	if _, m, err := Read(d.Path()); err != nil || m.Run != "one" {
		t.Errorf("the existing run is now %q, %v", m.Run, err)
	}
}

func TestCreateUsesADirectoryWithOtherFiles(t *testing.T) {
	path := t.TempDir()
	if err := os.WriteFile(filepath.Join(path, "notes.txt"), []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Create(path, results.Manifest{}); err != nil {
		t.Error(err)
	}
}

func TestOneOfTwoConcurrentCreatesWins(t *testing.T) {
	path := t.TempDir()
	var group sync.WaitGroup
	errs := make([]error, 8)
	for i := range errs {
		group.Go(func() { _, errs[i] = Create(path, results.Manifest{Run: fmt.Sprint(i)}) })
	}
	group.Wait()
	won := 0
	for _, err := range errs {
		if err == nil {
			won++
		}
	}
	if won != 1 {
		t.Errorf("%d of %d creates succeeded: %v", won, len(errs), errs)
	}
}

func TestReadRefuses(t *testing.T) {
	write := func(manifest, summary string) func(*testing.T, *Dir) {
		return func(t *testing.T, d *Dir) {
			for name, text := range map[string]string{"manifest.json": manifest, "summary.json": summary} {
				if err := os.WriteFile(filepath.Join(d.Path(), name), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
		}
	}
	for _, test := range []struct {
		name  string
		spoil func(*testing.T, *Dir)
		want  string
	}{
		{
			"no manifest",
			func(t *testing.T, d *Dir) { os.Remove(filepath.Join(d.Path(), "manifest.json")) },
			"is not a run",
		},
		{
			"newer manifest", write(`{"schema": 2}`, `{"schema": 1}`),
			"manifest.json has schema version 2, and only version 1 can be read\n",
		},
		{
			"newer summary", write(`{"schema": 1}`, `{"schema": 2}`),
			"summary.json has schema version 2, and only version 1 can be read\n",
		},
		{"no version", write(`{}`, `{"schema": 1}`), "schema version 0"},
		{"not JSON", write(`{"schema": 1}`, `{`), "summary.json: unexpected end"},
	} {
		t.Run(test.name, func(t *testing.T) {
			d := create(t)
			test.spoil(t, d)
			if _, _, err := Read(d.Path()); err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got %v, want %q in it", err, test.want)
			}
		})
	}
	t.Run("fields of a later release are ignored", func(t *testing.T) {
		d := create(t)
		write(`{"schema": 1, "new": 1}`, `{"schema": 1, "new": 1}`)(t, d)
		if _, _, err := Read(d.Path()); err != nil {
			t.Error(err)
		}
	})
}

func TestSummaryThatCannotBeWrittenLeavesTheOldOne(t *testing.T) {
	d := create(t)
	if err := d.WriteSummary(results.Run{Run: "nan", Cells: []results.Cell{{CapacityRPS: math.NaN()}}}); err == nil {
		t.Error("no error for a summary with NaN")
	}
	if r, _, err := Read(d.Path()); err != nil || r.Run != "one" {
		t.Errorf("the summary is %+v, %v", r, err)
	}
	left, err := filepath.Glob(filepath.Join(d.Path(), ".*"))
	if err != nil || len(left) > 0 {
		t.Errorf("temporary files remain: %v, %v", left, err)
	}
}

func TestConcurrentReadersSeeCompleteSummaries(t *testing.T) {
	d := create(t)
	var group sync.WaitGroup
	for range 4 {
		group.Go(func() {
			for range 20 {
				if err := d.WriteSummary(results.Run{Run: "one", Cells: make([]results.Cell, 10)}); err != nil {
					t.Error(err)
				}
				if _, _, err := Read(d.Path()); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
}

func TestPointLatest(t *testing.T) {
	runs := t.TempDir()
	for _, id := range []string{"a", "b"} {
		d, err := Create(filepath.Join(runs, id), results.Manifest{Run: id})
		if err != nil {
			t.Fatal(err)
		}
		if err := d.PointLatest(); err != nil {
			t.Fatal(err)
		}
		if _, m, err := Read(filepath.Join(runs, "latest")); err != nil || m.Run != id {
			t.Errorf("latest is %q, %v; want %q", m.Run, err, id)
		}
	}
}

func TestPointLatestKeepsAFile(t *testing.T) {
	d := create(t)
	file := filepath.Join(filepath.Dir(d.Path()), "latest")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.PointLatest(); err == nil {
		t.Error("a file named latest was replaced")
	}
}

func TestCellNames(t *testing.T) {
	d := create(t)
	for _, name := range []string{"lb/read-heavy", "lb/read-heavy/web.hosts=3,lb.policy=least_conn", "9"} {
		if _, err := d.Cell(name); err != nil {
			t.Error(err)
		}
	}
	for _, name := range []string{"", "..", "../x", "a/../b", "/a", "a/", "a//b", ".a", "a b", "a\nb", "lb/read-heavy"} {
		if c, err := d.Cell(name); err == nil {
			t.Errorf("no error for %q, its directory is %s", name, c.path)
		}
	}
}

func TestTimeline(t *testing.T) {
	c, err := create(t).Cell("lb/read-heavy")
	if err != nil {
		t.Fatal(err)
	}
	timeline, err := c.CreateTimeline()
	if err != nil {
		t.Fatal(err)
	}
	p50, p99 := int64(1_234_567), int64(60_000_000_000)
	for _, row := range []TimelineRow{
		{
			Step: "search-1", Offered: 512.5, Intended: 510, Sent: 509, Completed: 508, OK: 507, Errors: 3,
			P50NS: &p50, P99NS: &p99,
		},
		{Second: 1, Step: "search-1", Offered: 512.5, Events: []string{"killed web-1", `said "no", died`}},
	} {
		if err := timeline.Write(row); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(c.TimelinePath())
	if err != nil {
		t.Fatal(err)
	}
	want := `second,step,offered,intended,sent,completed,ok,errors,p50_ms,p99_ms,events
0,search-1,512.5,510,509,508,507,3,1.235,60000.000,
1,search-1,512.5,0,0,0,0,0,,,"killed web-1; said ""no"", died"
`
	if diff := cmp.Diff(want, string(got)); diff != "" {
		t.Errorf("before Close (-want +got):\n%s", diff)
	}
	if err := timeline.Close(); err != nil {
		t.Error(err)
	}
	if err := timeline.Write(TimelineRow{}); err == nil {
		t.Error("a row was written after Close")
	}
}

// A killed process leaves a readable run.
func TestKilledRunIsReadable(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run")
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), childEnv+"="+path)
	stdin, err := child.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	defer stdin.Close()
	stdout, err := child.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := child.Start(); err != nil {
		t.Fatal(err)
	}
	line, err := bufio.NewReader(stdout).ReadString('\n')
	if err := child.Process.Kill(); err != nil {
		t.Error(err)
	}
	_ = child.Wait() // the error says that it was killed
	if err != nil || line != "written\n" {
		t.Fatalf("the child said %q, %v", line, err)
	}

	r, m, err := Read(path)
	if err != nil || m.Run != "killed" || len(r.Cells) != 1 || r.Complete {
		t.Errorf("read %+v, %+v, %v", r, m, err)
	}
	c := CellDir{path: filepath.Join(path, "cells", "lb", "read-heavy")}
	if log, err := os.ReadFile(c.LatencyPath()); err != nil || string(log) != "one\ntwo\n" {
		t.Errorf("latency log %q, %v", log, err)
	}
	f, err := os.Open(c.TimelinePath())
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if rows, err := csv.NewReader(f).ReadAll(); err != nil || len(rows) != 3 {
		t.Errorf("timeline %v, %v", rows, err)
	}
}

// writeUntilKilled is the main function of the child. It writes a run, prints
// "written" and waits.
func writeUntilKilled(path string, out io.Writer) int {
	err := func() error {
		d, err := Create(path, results.Manifest{Run: "killed"})
		if err != nil {
			return err
		}
		c, err := d.Cell("lb/read-heavy")
		if err != nil {
			return err
		}
		log, err := c.CreateLatency()
		if err != nil {
			return err
		}
		timeline, err := c.CreateTimeline()
		if err != nil {
			return err
		}
		for second := range 2 {
			if err := timeline.Write(TimelineRow{Second: second}); err != nil {
				return err
			}
		}
		if _, err := io.WriteString(log, "one\ntwo\n"); err != nil {
			return err
		}
		return d.WriteSummary(results.Run{Run: "killed", Cells: make([]results.Cell, 1)})
	}()
	if err != nil {
		fmt.Fprintln(out, err)
		return 1
	}
	fmt.Fprintln(out, "written")
	_, _ = io.Copy(io.Discard, os.Stdin) // ends at the latest when the parent dies
	return 0
}

func create(t *testing.T) *Dir {
	t.Helper()
	d, err := Create(filepath.Join(t.TempDir(), "run"), results.Manifest{Run: "one"})
	if err != nil {
		t.Fatal(err)
	}
	return d
}
