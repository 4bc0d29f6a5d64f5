package local

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/targets/proc"
)

// deadOwner returns the owner of a process that has ended.
func deadOwner(t *testing.T) proc.Owner {
	t.Helper()
	owner, err := proc.Self("/")
	if err != nil {
		t.Fatal(err)
	}
	ended := exec.Command("true")
	if err := ended.Run(); err != nil {
		t.Fatal(err)
	}
	owner.PID = ended.Process.Pid
	return owner
}

// Only directories of dead harnesses are removed, after what the kernel keeps for them is freed.
func TestDirectoriesOfTheDeadAreRemoved(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	self, err := proc.Self("/")
	if err != nil {
		t.Fatal(err)
	}
	dead := dirPrefix + deadOwner(t).String()
	all := map[string]bool{ // name -> kept
		dirPrefix + self.String() + "-1": true,
		dead + "-1":                      false,
		dirPrefix + "templates":          true,
		"other-" + dead + "-1":           true,
	}
	for name := range all {
		if err := os.MkdirAll(filepath.Join(parent, name, "db-1"), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(parent, dead+"-link") // another user could have made it
	if err := os.Symlink(filepath.Join(parent, dirPrefix+"templates"), link); err != nil {
		t.Fatal(err)
	}
	var released []string
	Sweep(Options{workDir: parent, Release: func(dir string) error {
		released = append(released, dir)
		_, err := os.Stat(filepath.Join(dir, "db-1"))
		return err
	}})
	for name, kept := range all {
		if _, err := os.Stat(filepath.Join(parent, name, "db-1")); (err == nil) != kept {
			t.Errorf("%s exists: %v, want %v", name, err == nil, kept)
		}
	}
	if want := []string{filepath.Join(parent, dead+"-1")}; !slices.Equal(released, want) {
		t.Errorf("released %q, want %q", released, want)
	}
}

// A half-built template is removed, but not while it is being built. Without a template directory, files of the user
// that look like one stay.
func TestHalfBuiltTemplatesAreRemoved(t *testing.T) {
	cache := t.TempDir()
	for _, name := range []string{".dead.1", ".busy.1", "dead", "busy"} {
		if err := os.MkdirAll(filepath.Join(cache, name, templateDB), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, name := range []string{"dead", "busy"} {
		if err := os.WriteFile(filepath.Join(cache, name+lockSuffix), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	builder, err := os.Open(filepath.Join(cache, "busy"+lockSuffix))
	if err != nil {
		t.Fatal(err)
	}
	defer builder.Close()
	if err := unix.Flock(int(builder.Fd()), unix.LOCK_EX); err != nil {
		t.Fatal(err)
	}
	t.Chdir(cache)
	Sweep(Options{workDir: t.TempDir()})
	if _, err := os.Stat(".dead.1"); err != nil {
		t.Errorf("without a template directory: %v", err)
	}
	Sweep(Options{workDir: t.TempDir(), TemplateDir: cache})
	for name, kept := range map[string]bool{".dead.1": false, ".busy.1": true, "dead": true, "busy": true} {
		if _, err := os.Stat(filepath.Join(cache, name)); (err == nil) != kept {
			t.Errorf("%s exists: %v, want %v", name, err == nil, kept)
		}
	}
}

// Other users can neither read the nodes' directories and logs nor the template. Down releases what the kernel keeps.
func TestNothingIsReadableByOthers(t *testing.T) {
	t.Parallel()
	s := newFixture(t, "lb", nil)
	var released []string
	s.options.Release = func(dir string) error {
		released = append(released, dir)
		_, err := os.Stat(filepath.Join(dir, "db-1"))
		return err
	}
	system := s.up(t)
	for _, root := range []string{system.dir, s.options.TemplateDir} {
		if err := filepath.WalkDir(root, func(path string, entry os.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := entry.Info()
			if err != nil {
				return err
			}
			reached := filepath.Dir(path) == root || path == root || filepath.Dir(path) == system.logDir
			if mode := info.Mode().Perm(); reached && mode&0o077 != 0 {
				t.Errorf("%s has mode %o", path, mode)
			}
			return nil
		}); err != nil {
			t.Fatal(err)
		}
	}
	if err := system.Down(t.Context()); err != nil || !slices.Equal(released, []string{system.dir}) {
		t.Errorf("%v; released %q before the removal, want %s", err, released, system.dir)
	}
}
