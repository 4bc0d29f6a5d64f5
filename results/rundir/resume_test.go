package rundir

import (
	"crypto/rand"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/results"
)

func TestReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "run")
	unlock, err := Lock(path)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Lock(path); err == nil || !strings.Contains(err.Error(), "is in use by another stagebench") {
		t.Errorf("a second lock: %v", err)
	}
	// A process was killed after it had made the directory of the cells, and while it wrote the summary.
	for _, err := range []error{
		os.Mkdir(filepath.Join(path, "cells"), 0o755),
		os.WriteFile(filepath.Join(path, ".summary.json."+rand.Text()), nil, 0o600),
		os.WriteFile(filepath.Join(path, ".summary.json.swp"), nil, 0o600), // of an editor
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	if d, _, err := Reopen(path); d != nil || err != nil {
		t.Fatalf("a run that was not begun: %v, %v", d, err)
	}
	if _, err := Create(path, results.Manifest{Run: "one"}); err != nil {
		t.Fatal(err)
	}
	d, m, err := Reopen(path)
	if err != nil || d == nil || m.Run != "one" {
		t.Fatalf("reopened %v, %+v, %v", d, m, err)
	}
	left, _ := filepath.Glob(filepath.Join(path, ".summary*"))
	if want := []string{filepath.Join(path, ".summary.json.swp")}; !slices.Equal(left, want) {
		t.Errorf("files %q, want %q: the temporary file is removed, and the file of an editor is not", left, want)
	}
	if err := unlock(); err != nil {
		t.Error(err)
	}
	if again, err := Lock(path); err != nil || again() != nil {
		t.Errorf("after the end of the lock: %v", err)
	}
}

func TestRepeats(t *testing.T) {
	d := create(t)
	const name = "lb/read-heavy/repeat-1"
	if _, err := d.Cell(name); err != nil {
		t.Fatal(err)
	}
	var read map[string]int
	if d.HasRepeat(name) || d.ReadRepeat(name, &read) == nil {
		t.Error("a repeat that is not complete was found")
	}
	if err := d.WriteRepeat(name, map[string]int{"n": 7}); err != nil {
		t.Fatal(err)
	}
	if err := d.ReadRepeat(name, &read); err != nil || read["n"] != 7 || !d.HasRepeat(name) {
		t.Errorf("read %v, %v", read, err)
	}
	if err := d.Discard(name); err != nil || d.HasRepeat(name) {
		t.Errorf("a discarded repeat is there: %v", err)
	}
	if _, err := d.Cell(name); err != nil {
		t.Errorf("it cannot be measured again: %v", err)
	}
	if d.Discard("../x") == nil || d.Discard("") == nil {
		t.Error("a name outside the cells was accepted")
	}
}
