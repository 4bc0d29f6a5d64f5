package main

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/txtar"
)

// maxTouched is the largest number of existing files that a new tier may change.
const maxTouched = 4

// A new tier is new files, and lines in the existing files that CONTRIBUTING.md names. The
// archive testdata/tier.txtar is such a tier. A build overlay adds it to the sources. Its own
// test, TestEcho, brings it up and finds its knob, its metric and its column.
func TestANewTierTouchesFewFiles(t *testing.T) {
	t.Parallel()
	archive, err := txtar.ParseFile("testdata/tier.txtar")
	if err != nil {
		t.Fatal(err)
	}
	root, err := filepath.Abs("../..")
	if err != nil {
		t.Fatal(err)
	}
	overlay := map[string]string{}
	var touched []string
	for _, f := range archive.Files {
		path, text := filepath.Join(root, filepath.FromSlash(f.Name)), string(f.Data)
		if existing, err := os.ReadFile(path); err == nil {
			old, next, _ := strings.Cut(text, "=>\n")
			if strings.Count(string(existing), strings.TrimSuffix(old, "\n")) != 1 {
				t.Fatalf("%s must have this text exactly once:\n%s", f.Name, old)
			}
			text = strings.Replace(string(existing), strings.TrimSuffix(old, "\n"), strings.TrimSuffix(next, "\n"), 1)
			touched = append(touched, f.Name)
		}
		overlay[path] = filepath.Join(t.TempDir(), filepath.Base(path))
		if err := os.WriteFile(overlay[path], []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(touched)
	if named := touchedByTier(t, root); len(touched) > maxTouched || !slices.Equal(touched, named) {
		t.Errorf("the new tier changes %q, CONTRIBUTING.md names %q, want the same files, at most %d",
			touched, named, maxTouched)
	}
	document, err := json.Marshal(map[string]any{"Replace": overlay})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "overlay.json")
	if err := os.WriteFile(file, document, 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(),
		"go", "test", "-vet=off", "-count=1", "-overlay", file, "-run", "^TestEcho$", "-v", ".")
	// Without this, the new test binary would run as stagebench instead of running its tests.
	cmd.Env = slices.DeleteFunc(os.Environ(), func(v string) bool { return strings.HasPrefix(v, actVariable+"=") })
	if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "--- PASS: TestEcho") {
		t.Errorf("%v\n%s", err, out)
	}
}

// touchedByTier lists the existing files that a new tier changes according to CONTRIBUTING.md.
func touchedByTier(t *testing.T, root string) []string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(root, "CONTRIBUTING.md"))
	if err != nil {
		t.Fatal(err)
	}
	_, section, _ := strings.Cut(string(text), "### A tier\n")
	section, _, _ = strings.Cut(section, "\n#")
	_, list, _ := strings.Cut(section, "Existing files that change:")
	list, _, _ = strings.Cut(list, "\n\n")
	var paths []string
	for _, match := range regexp.MustCompile("`([a-z/]+\\.[a-z]+)`").FindAllStringSubmatch(list, -1) {
		paths = append(paths, match[1])
	}
	slices.Sort(paths)
	return paths
}
