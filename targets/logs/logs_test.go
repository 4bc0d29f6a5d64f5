package logs_test

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/targets/logs"
)

// write creates a directory with these files.
func write(t testing.TB, files map[string]string) string {
	t.Helper()
	dir := t.TempDir()
	for name, text := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return dir
}

func nodes() map[string]string {
	return map[string]string{
		"lb-1.log": `{"time":1795243200500,"level":"INFO","msg":"request","request_id":"r1","path":"/a b","status":502}
[WARNING]  (14387) : Server web/web-1 is DOWN
`,
		"web-1.log": `{"time":"2026-11-21T06:40:00.4Z","level":"INFO","msg":"ready","node":"web-1","role":"web"}
{"time":"2026-11-21T06:40:00.45Z","level":"ERROR","msg":"a request failed","request_id":"r1","error":"no luck"}

panic: out of memory
`,
		"db-1.log": "2026-11-21 06:40:00.470 UTC [12] LOG:  checkpoint\n" +
			"2026-11-21 06:40:00.600 UTC [12] FATAL:  the disk is full\n{broken\n",
		"notes.txt": "not a log\n",
	}
}

func lines(t testing.TB, dir string, q logs.Query) (all []string) {
	t.Helper()
	if err := logs.Stream(t.Context(), dir, q, func(r logs.Record) error {
		all = append(all, r.String())
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return all
}

// Lines of all nodes and formats are ordered by time.
func TestMerge(t *testing.T) {
	want := []string{
		"06:40:00.400 web-1   INFO  ready role=web",
		`06:40:00.450 web-1   ERROR a request failed request_id=r1 error="no luck"`,
		"06:40:00.450 web-1   ERROR panic: out of memory",
		"06:40:00.470 db-1    INFO  [12] LOG:  checkpoint",
		`06:40:00.500 lb-1    INFO  request request_id=r1 path="/a b" status=502`,
		"06:40:00.500 lb-1    WARN  [WARNING]  (14387) : Server web/web-1 is DOWN",
		"06:40:00.600 db-1    ERROR [12] FATAL:  the disk is full",
		"06:40:00.600 db-1          {broken",
	}
	if diff := cmp.Diff(want, lines(t, write(t, nodes()), logs.Query{})); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestQuery(t *testing.T) {
	dir := write(t, nodes())
	since := time.Date(2026, 11, 21, 6, 40, 0, 550e6, time.UTC)
	for name, test := range map[string]struct {
		query logs.Query
		want  int
	}{
		"a request through the tiers": {logs.Query{Request: "r1"}, 2},
		"a node":                      {logs.Query{Nodes: []string{"db-1"}}, 3},
		"errors":                      {logs.Query{Level: "ERROR"}, 4}, // one of them has no level
		"since":                       {logs.Query{Since: since}, 2},
		"a text":                      {logs.Query{Matches: regexp.MustCompile("(?i)DISK|down")}, 2},
		"several filters": {
			logs.Query{Nodes: []string{"lb-1"}, Level: "WARN", Matches: regexp.MustCompile("web-1")}, 1,
		},
	} {
		if got := lines(t, dir, test.query); len(got) != test.want {
			t.Errorf("%s: %d lines, want %d:\n%s", name, len(got), test.want, strings.Join(got, "\n"))
		}
	}
	err := logs.Stream(t.Context(), dir, logs.Query{Level: "LOUD"}, nil)
	if err == nil || !strings.Contains(err.Error(), "want one of DEBUG") {
		t.Errorf("unknown level: error %v", err)
	}
	err = logs.Stream(t.Context(), t.TempDir(), logs.Query{}, nil)
	if err == nil || !strings.Contains(err.Error(), "there is no log") {
		t.Errorf("empty directory: error %v", err)
	}
}

// With Follow, Stream gives lines that are written later, also those of new files. It
// gives a line only when the line is complete.
func TestFollow(t *testing.T) {
	dir := write(t, map[string]string{"web-1.log": "first\nsec"})
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var got []string
	ended := errors.New("enough")
	err := logs.Stream(ctx, dir, logs.Query{Follow: true}, func(r logs.Record) error {
		got = append(got, r.Node+" "+r.Text)
		switch len(got) {
		case 1:
			f, err := os.OpenFile(filepath.Join(dir, "web-1.log"), os.O_APPEND|os.O_WRONLY, 0)
			if err != nil {
				return err
			}
			if _, err := f.WriteString("ond\n"); err != nil {
				return err
			}
			return errors.Join(f.Close(), os.WriteFile(filepath.Join(dir, "web-2.log"), []byte("third\n"), 0o600))
		case 3:
			return ended
		}
		return nil
	})
	want := []string{"web-1 first", "web-1 second", "web-2 third"}
	if diff := cmp.Diff(want, got); !errors.Is(err, ended) || diff != "" {
		t.Errorf("error %v, records (-want +got)\n%s", err, diff)
	}
}

func FuzzLine(f *testing.F) {
	for _, text := range nodes() {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		dir := write(t, map[string]string{"web-1.log": text, "web-2.log": "x\n"})
		for _, line := range lines(t, dir, logs.Query{}) {
			if line == "" {
				t.Fatal("an empty line")
			}
		}
	})
}

// A client chooses paths and header values. They must not act on the terminal of the reader, nor change what a line
// seems to say. JSON keeps them.
func TestNothingActsOnTheTerminal(t *testing.T) {
	t.Parallel()
	const hostile = "/\x1b[2J\u009b31m\r\x00\x7f\u202e\u2066\u200f\u2028\U000e0041end"
	line, err := json.Marshal(map[string]string{
		"time": "2026-11-21T06:40:00Z", "msg": hostile, "path": hostile, hostile: "x",
	})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{"our node": string(line), "native server": hostile + "\xff\x9b"} {
		dir := write(t, map[string]string{"web-1.log": text + "\n"})
		if err := logs.Stream(t.Context(), dir, logs.Query{}, func(r logs.Record) error {
			encoded, err := json.Marshal(r)
			if err != nil {
				return err
			}
			for _, shown := range []string{r.String(), string(encoded)} {
				if strings.ContainsFunc(shown, func(c rune) bool { return !strconv.IsPrint(c) }) {
					t.Errorf("%s: %q is shown", name, shown)
				}
			}
			var back struct {
				Text   string            `json:"msg"`
				Fields map[string]string `json:"fields"`
			}
			if err := json.Unmarshal(encoded, &back); err != nil {
				return err
			}
			if !strings.HasPrefix(back.Text, hostile) || name == "our node" && back.Fields["path"] != hostile {
				t.Errorf("%s: JSON holds %+q, want %q", name, back, hostile)
			}
			if !strings.Contains(r.String(), `/\x1b[2J\u009b31m\r\x00\x7f\u202e\u2066\u200f\u2028\U000e0041end`) {
				t.Errorf("%s: %s", name, r)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
}
