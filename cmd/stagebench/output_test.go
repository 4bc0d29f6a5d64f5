package main

import (
	"bytes"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stagebench/stagebench/results/table"
)

// No line that a command prints is wider than 100 columns, unless --wide is given.
func TestLinesFit(t *testing.T) {
	commands := [][]string{
		{"--help"}, {"doctor"}, {"list", "stages"}, {"list", "workloads"}, {"list", "knobs"}, {"list", "engines"},
	}
	const names = "run up status kill pause resume scale logs recover down attack capacity compare list doctor freezer"
	for _, name := range strings.Fields(names) {
		commands = append(commands, []string{name, "--help"})
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
	if lines := strings.Count(wide.String(), "\n"); err != nil || lines > 80 {
		t.Errorf("list knobs --wide has %d lines, error %v: want one line for each knob", lines, err)
	}
}
