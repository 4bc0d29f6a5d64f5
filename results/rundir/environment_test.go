package rundir

import (
	"os"
	"path/filepath"
	"runtime"
	"runtime/debug"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/stagebench/stagebench/results"
)

func TestFillEnvironment(t *testing.T) {
	binary := filepath.Join(t.TempDir(), "stagebench")
	if err := os.WriteFile(binary, []byte("abc"), 0o600); err != nil {
		t.Fatal(err)
	}
	file := func(text string) *fstest.MapFile { return &fstest.MapFile{Data: []byte(text)} }
	machine := fstest.MapFS{
		"etc/os-release":            file("NAME=\"Debian\"\nPRETTY_NAME=\"Debian GNU/Linux 12 (bookworm)\"\n"),
		"proc/sys/kernel/osrelease": file("6.1.0-13-amd64\n"),
		"proc/cpuinfo":              file("processor\t: 0\nmodel\t\t: 85\nmodel name\t: Example CPU @ 2.00GHz\n"),
	}
	var m results.Manifest
	if err := FillEnvironment(&m, machine, binary); err != nil {
		t.Fatal(err)
	}
	for what, pair := range map[string][2]string{
		// The test vector of FIPS 180-2 for "abc".
		"binary": {m.BinarySHA, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"},
		"kernel": {m.Kernel, "6.1.0-13-amd64"},
		"cpu":    {m.CPUModel, "Example CPU @ 2.00GHz"},
		"os":     {m.OS, runtime.GOOS + "/" + runtime.GOARCH + ", Debian GNU/Linux 12 (bookworm)"},
		"go":     {m.Go, runtime.Version()},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s is %q, want %q", what, pair[0], pair[1])
		}
	}
	if m.Cores < 1 || m.Version == "" {
		t.Errorf("cores %d, version %q", m.Cores, m.Version)
	}
}

func TestUnknownFacts(t *testing.T) {
	var m results.Manifest
	if err := FillEnvironment(&m, fstest.MapFS{}, os.Args[0]); err != nil {
		t.Fatal(err)
	}
	if m.Kernel != "unknown" || m.CPUModel != "unknown" || !strings.HasSuffix(m.OS, ", unknown") {
		t.Errorf("%+v", m)
	}
	if err := FillEnvironment(&m, fstest.MapFS{}, filepath.Join(t.TempDir(), "none")); err == nil {
		t.Error("no error for a missing binary")
	}
}

func TestVersion(t *testing.T) {
	built := func(version string, settings ...debug.BuildSetting) *debug.BuildInfo {
		return &debug.BuildInfo{Main: debug.Module{Version: version}, Settings: settings}
	}
	revision := debug.BuildSetting{Key: "vcs.revision", Value: "0123abc"}
	for _, test := range []struct {
		info *debug.BuildInfo
		want string
	}{
		{nil, "unknown"},
		{built("v1.2.3", revision), "v1.2.3"},
		{built("(devel)"), "devel"},
		{built("", revision), "0123abc"},
		{built("", revision, debug.BuildSetting{Key: "vcs.modified", Value: "true"}), "0123abc with changes"},
	} {
		if got := version(test.info); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
}
