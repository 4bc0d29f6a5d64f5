package lines_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/results/trend"
	"github.com/stagebench/stagebench/results/trend/lines"
)

// addVariable is an environment variable with a file. If it is set, the test binary adds records to it until it is
// killed.
const addVariable = "STAGEBENCH_TEST_ADD"

func TestMain(m *testing.M) {
	file := os.Getenv(addVariable)
	for i := 0; file != ""; i++ {
		if _, err := lines.Add(context.Background(), file, record(fmt.Sprintf("%d-%d", os.Getpid(), i))); err != nil {
			panic(err)
		}
	}
	os.Exit(m.Run())
}

// record returns a record that is longer than a page.
func record(run string) trend.Record {
	r := trend.Record{
		Schema: 1, Run: run, Time: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC), Commit: "c1",
		Machine: map[string]string{"cores": "2"}, Plan: map[string]string{"slo": "p99<100ms"},
	}
	for i := range 50 {
		r.Cells = append(r.Cells, trend.Cell{
			Stage: "lb", Workload: fmt.Sprint("w", i), Valid: true,
			Metrics: map[string]trend.Figure{"p99": {Value: 1e6}, "capacity": {Value: 300, Low: 270, High: 330}},
		})
	}
	return r
}

// What was added is read again. A run is added once, and the file keeps its mode and may be a link.
func TestAdd(t *testing.T) {
	dir := t.TempDir()
	file, link := filepath.Join(dir, "file"), filepath.Join(dir, "link")
	if _, err := lines.Read(file); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "\nadd a run: ") {
		t.Errorf("read a file that is not there: %v", err)
	}
	for i, want := range []lines.Added{{Runs: 1}, {Runs: 1, Known: 1, Old: record("a")}} {
		if a, err := lines.Add(t.Context(), file, record("a")); err != nil || !cmp.Equal(a, want) {
			t.Errorf("call %d: %+v, %v; want %+v", i, a, err, want)
		}
	}
	text, err := os.ReadFile(file)
	if err == nil { // as an editor may leave it
		err = os.WriteFile(file, []byte("\n"+strings.TrimSuffix(string(text), "\n")), 0o666)
	}
	if err := errors.Join(err, os.Chmod(file, 0o640), os.Symlink("file", link)); err != nil {
		t.Fatal(err)
	}
	if a, err := lines.Add(t.Context(), link, record("b")); err != nil || a.Runs != 2 {
		t.Errorf("added through a link: %+v, %v", a, err)
	}
	if a, err := lines.Add(t.Context(), file, record("a")); err != nil || a.Known != 2 {
		t.Errorf("added again: %+v, %v; want it known from line 2", a, err)
	}
	info, err := os.Lstat(link)
	if err != nil || info.Mode().Type() != fs.ModeSymlink {
		t.Errorf("the link is %v, %v", info, err)
	}
	if info, err := os.Stat(file); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("mode %v, %v; want that of before", info.Mode(), err)
	}
	records, err := lines.Read(file)
	if d := cmp.Diff([]trend.Record{record("a"), record("b")}, records); d != "" || err != nil {
		t.Errorf("%v, records (-want +got):\n%s", err, d)
	}
	if text, _ := os.ReadFile(file); !strings.Contains(string(text), `"p99<100ms"`) {
		t.Error("the text is escaped")
	}
}

// Lines of concurrent processes are all kept, and none is broken when processes are killed at any moment.
func TestConcurrentAndKilled(t *testing.T) {
	file := filepath.Join(t.TempDir(), "file")
	before := 0 // runs that a reader has seen: none of them may go
	for range 8 {
		var all [3]*exec.Cmd
		for i := range all {
			all[i] = exec.Command(os.Args[0])
			all[i].Env = append(os.Environ(), addVariable+"="+file)
			all[i].Stderr = os.Stderr
			if err := all[i].Start(); err != nil {
				t.Fatal(err)
			}
		}
		want, end := before+3, time.Now().Add(time.Minute)
		for before < want && time.Now().Before(end) {
			before = noFewer(t, file, before)
		}
		for _, cmd := range all {
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
		if before = noFewer(t, file, before); before < want {
			t.Fatal("the processes added too few lines within a minute")
		}
	}
	var group sync.WaitGroup
	for i := range 20 {
		group.Go(func() {
			if _, err := lines.Add(t.Context(), file, record(fmt.Sprint("run ", i))); err != nil {
				t.Error(err)
			}
		})
	}
	group.Wait()
	if got := noFewer(t, file, before); got != before+20 {
		t.Errorf("%d runs, want %d", got, before+20)
	}
	entries, err := os.ReadDir(filepath.Dir(file))
	if err != nil || len(entries) != 1 {
		t.Errorf("%v, %v; want only the file", entries, err)
	}
}

// noFewer returns the number of runs of a file, which must be whole and have at least as many runs as before.
func noFewer(t *testing.T, file string, before int) int {
	t.Helper()
	records, err := lines.Read(file)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		t.Fatal(err)
	}
	if len(records) < before {
		t.Fatalf("%d runs, and there were %d", len(records), before)
	}
	return len(records)
}

// Waiting for the lock ends with the context.
func TestWaiting(t *testing.T) {
	dir, err := os.Open(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := lines.Add(ctx, filepath.Join(dir.Name(), "file"), record("a")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want the end of the context", err)
	}
}

// Unknown fields are ignored, and two equal lines count once. An error has the number of the line and what to do.
func TestParsing(t *testing.T) {
	const good = `{"schema":1,"run":"a","time":"2026-01-01T00:00:00Z","later":{"x":[1]},"cells":[` +
		`{"stage":"lb","workload":"w","metrics":{"p99":{"value":1,"more":2}}}]}`
	file := filepath.Join(t.TempDir(), "file")
	for _, test := range []struct{ text, want string }{
		{good + "\r\n\n" + good + "\n", ""},
		{good + "\n<<<<<<< HEAD\n", ":2: a merge conflict of git\nremove the lines of the markers"},
		{good + "\n=======\n", ":2: a merge conflict"},
		{good + "\n>>>>>>> side\n", ":2: a merge conflict"},
		{good + "\n" + good[:40], ":2: not a line of a history: unexpected end of JSON input\nremove this line"},
		{"[]\n", ":1: not a line of a history"},
		{`{"run":"a"}`, ":1: not a line of a history: it has no schema version"},
		{
			`{"schema":2,"run":7}`,
			":1: schema version 2, and this version of stagebench reads up to 1\nuse a newer stagebench",
		},
		{`{"schema":1,"run":7}`, ":1: not a line of a history: json: cannot unmarshal"},
		{`{"schema":1,"time":"2026-01-01T00:00:00Z"}`, ":1: the line has no run"},
		{`{"schema":1,"run":"a"}`, ":1: the line has no time"},
		{strings.Replace(good, `"lb"`, `""`, 1), "has a cell without a stage"},
		{strings.Replace(good, `"value":1`, `"value":-1`, 1), "has a negative p99 in the cell lb/w"},
		{strings.Replace(good, `"cells":[`, `"cells":[{"stage":"lb","workload":"w"},`, 1), "has the cell lb/w twice"},
		{
			good + "\n" + strings.Replace(good, "2026", "2027", 1),
			":2: line 1 is also of run a, with another content\nremove one",
		},
	} {
		if err := os.WriteFile(file, []byte(test.text), 0o666); err != nil {
			t.Fatal(err)
		}
		records, err := lines.Read(file)
		if test.want == "" {
			if err != nil || len(records) != 1 || records[0].Cells[0].Metrics["p99"].Value != 1 {
				t.Errorf("%s: %+v, %v", test.text, records, err)
			}
			continue
		}
		if err == nil || !strings.Contains(err.Error(), test.want) || !strings.Contains(err.Error(), "\n") {
			t.Errorf("%s:\nerror %v\nwant %q", test.text, err, test.want)
		}
		if _, err := lines.Add(t.Context(), file, record("z")); err == nil {
			t.Errorf("%s: a line was added", test.text)
		}
		if text, _ := os.ReadFile(file); string(text) != test.text {
			t.Errorf("%s: the file was changed", test.text)
		}
	}
	if _, err := lines.Read(filepath.Dir(file)); err == nil || !strings.Contains(err.Error(), "not a regular file") {
		t.Errorf("read a directory: %v", err)
	}
	if _, err := lines.Add(t.Context(), filepath.Join(file, "no", "file"), record("a")); err == nil {
		t.Error("added to a directory that is not there")
	}
}

// FuzzParsing holds that no text makes Read panic, and that what it reads can be added to.
func FuzzParsing(f *testing.F) {
	f.Add([]byte(`{"schema":1,"run":"a","time":"2026-01-01T00:00:00Z","cells":[]}`))
	f.Add([]byte("<<<<<<< HEAD\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		file := filepath.Join(t.TempDir(), "file")
		if err := os.WriteFile(file, text, 0o666); err != nil {
			t.Fatal(err)
		}
		records, err := lines.Read(file)
		if err != nil {
			return
		}
		trend.SeriesOf(records)
		if a, err := lines.Add(t.Context(), file, record("the run of this test")); err != nil || a.Runs < len(records) {
			t.Errorf("%q: %+v, %v", text, a, err)
		}
	})
}
