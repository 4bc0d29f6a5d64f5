package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/results/table"
)

// No line that a command prints is wider than 100 columns, unless --wide is given.
func TestLinesFit(t *testing.T) {
	commands := [][]string{
		{"--help"}, {"doctor"}, {"list", "stages"}, {"list", "workloads"}, {"list", "knobs"}, {"list", "engines"},
	}
	for _, c := range rootCommand(streams{}).Commands() {
		commands = append(commands, []string{c.Name(), "--help"})
	}
	for _, args := range commands {
		var out bytes.Buffer
		s := streams{args: args, out: &out, err: io.Discard, width: table.DefaultWidth}
		if err := run(t.Context(), s); err != nil {
			t.Errorf("%v: %v", args, err)
		}
		for line := range strings.Lines(out.String()) {
			if n := utf8.RuneCountInString(strings.TrimRight(line, "\n")); n > table.DefaultWidth {
				t.Errorf("%v: a line has %d characters: %s", args, n, line)
			}
		}
		if out.Len() == 0 {
			t.Errorf("%v printed nothing", args)
		}
	}
	var wide bytes.Buffer
	err := run(t.Context(), streams{args: []string{"list", "knobs", "--wide"}, out: &wide, width: table.DefaultWidth})
	if lines := strings.Count(wide.String(), "\n"); err != nil || lines > len(knobNames())+5 {
		t.Errorf("list knobs --wide has %d lines, error %v: want one line for each knob", lines, err)
	}
}

// --csv-dir writes every table, also those with equal titles, and only to a directory without tables.
func TestCSVDir(t *testing.T) {
	o := outputFlags{format: string(table.FormatText), csvDir: filepath.Join(t.TempDir(), "new", "tables")}
	if err := o.makeCSVDir(); err != nil {
		t.Fatal(err)
	}
	one := table.Table{Title: "Events: lb read-heavy", Columns: columns("event"), Rows: [][]table.Cell{texts("kill")}}
	if err := o.files([]table.Table{one, one}); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"events-lb-read-heavy.csv", "events-lb-read-heavy-2.csv"} {
		text, err := os.ReadFile(filepath.Join(o.csvDir, name))
		if err != nil || !strings.HasPrefix(string(text), "event,notes\nkill,") {
			t.Errorf("%s: %q, %v", name, text, err)
		}
	}
	if err := o.makeCSVDir(); err == nil || !strings.Contains(err.Error(), "already has tables, such as events-lb") {
		t.Errorf("error %v for a directory with tables", err)
	}
}

// Colors are only for terminals that have them.
func TestWantsColor(t *testing.T) {
	for _, c := range []struct {
		terminal bool
		env      map[string]string
		want     bool
	}{
		{true, nil, true},
		{true, map[string]string{"NO_COLOR": "", "TERM": "xterm"}, true},
		{true, map[string]string{"NO_COLOR": "1"}, false},
		{true, map[string]string{"TERM": "dumb"}, false},
		{false, nil, false},
	} {
		if wantsColor(c.terminal, func(name string) string { return c.env[name] }) != c.want {
			t.Errorf("terminal %t, %v: want %t", c.terminal, c.env, c.want)
		}
	}
}

// In a list, the shell completes the last value.
func TestListCompletion(t *testing.T) {
	complete := listCompletion([]string{"single", "lb", "cache"}, cobra.ShellCompDirectiveDefault)
	for typed, want := range map[string][]string{
		"": {"single", "lb", "cache"}, "lb,": {"lb,single", "lb,cache"}, "lb,ca": {"lb,single", "lb,cache"},
	} {
		if got, _ := complete(nil, nil, typed); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", typed, got, want)
		}
	}
}
