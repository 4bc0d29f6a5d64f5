package program

import (
	"errors"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The first program that is new enough is found. Else the error says what was found, and how to install one.
func TestChoose(t *testing.T) {
	t.Parallel()
	p := Program{
		Name: "proxyd", Flag: "-v", Version: regexp.MustCompile(`^Proxy version (\d+\.\d+(?:\.\d+)?)`),
		Oldest: [2]int{2, 6}, Package: "proxy",
	}
	printed := map[string]string{
		"old": "Proxy version 1.8.4", "older": "Proxy version 2.5.14\nmore", "good": "Proxy version 2.6.12-1",
		"new": "Proxy version 3.1", "other": "Cache version 3.1\nmore",
	}
	root := t.TempDir()
	for dir := range printed {
		path := filepath.Join(root, dir, p.Name)
		if err := errors.Join(os.Mkdir(filepath.Dir(path), 0o700), os.WriteFile(path, nil, 0o700)); err != nil {
			t.Fatal(err)
		}
	}
	ask := func(path string) (string, error) { return printed[filepath.Base(filepath.Dir(path))], nil }
	for _, test := range []struct {
		dirs []string
		want string // version, or a part of the error
	}{
		{[]string{"good", "new"}, "2.6.12"},
		{[]string{"none", "old", "new"}, "3.1"},
		{
			[]string{"none", "older"},
			"found only version 2.5.14 at " + root + "/older/proxyd, want 2.6 or newer\napt-get install proxy",
		},
		{[]string{"other"}, `printed "Cache version 3.1", which has no version`},
		{[]string{"none"}, "proxyd: not found on PATH, in /usr/sbin or /usr/local/sbin\napt-get install proxy"},
	} {
		var dirs []string
		for _, dir := range test.dirs {
			dirs = append(dirs, filepath.Join(root, dir))
		}
		install, err := p.choose(dirs, ask)
		switch {
		case err != nil && !strings.Contains(err.Error(), test.want):
			t.Errorf("%v: error %q, want %q", test.dirs, err, test.want)
		case err == nil && install.Version != test.want:
			t.Errorf("%v: chose %+v, want version %s", test.dirs, install, test.want)
		}
	}
}

// A program that fails is reported as such.
func TestBrokenProgram(t *testing.T) {
	t.Parallel()
	p := Program{Name: "false", Flag: "-v", Version: regexp.MustCompile(`(\d)`), Package: "coreutils"}
	if _, err := p.Find(); err == nil || !strings.Contains(err.Error(), "false -v: exit status 1\n") {
		t.Errorf("error %v", err)
	}
}
