package rundir

import (
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/results"
)

const (
	lockFile   = ".lock"
	repeatFile = "repeat.json"
)

// Lock makes the directory of a run, and locks it for this process. The lock ends with the process at the latest, also
// after SIGKILL. Lock returns an error if another process has it.
func Lock(path string) (unlock func() error, err error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("create run directory: %w\nchoose another one with --out DIR", err)
	}
	f, err := os.OpenFile(filepath.Join(path, lockFile), os.O_RDWR|os.O_CREATE, 0o666)
	if err != nil {
		return nil, fmt.Errorf("lock run directory: %w\nchoose another one with --out DIR", err)
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("%s is in use by another stagebench: %w\n"+
			"wait for its end, or choose another directory with --out DIR", path, err), f.Close())
	}
	return f.Close, nil
}

// Reopen opens the directory of an earlier run to continue it, with its manifest. The caller has the lock. If no run
// was begun in the directory, the result is nil, and Create can be called.
func Reopen(path string) (*Dir, results.Manifest, error) {
	var m results.Manifest
	if _, err := os.Lstat(filepath.Join(path, manifestFile)); errors.Is(err, fs.ErrNotExist) {
		// A process that was killed before it wrote the manifest left at most an empty directory.
		_ = os.Remove(filepath.Join(path, cellsDir))
		removeTemporary(path)
		return nil, m, nil
	}
	if err := read(path, manifestFile, &m, &m.Schema); err != nil {
		return nil, m, err
	}
	return &Dir{path: path}, m, nil
}

// RemoveTemporary removes the files that a killed process was writing. Nobody else may use the directory.
func (d *Dir) RemoveTemporary() { removeTemporary(d.path) }

// removeTemporary removes only files with the names that replace makes. What stays does no harm.
func removeTemporary(path string) {
	entries, _ := os.ReadDir(path)
	for _, e := range entries {
		for _, name := range []string{manifestFile, summaryFile} {
			if random, ours := strings.CutPrefix(e.Name(), "."+name+"."); ours && len(random) == len(rand.Text()) {
				_ = os.Remove(filepath.Join(path, e.Name()))
			}
		}
	}
}

// Discard removes what an interrupted measurement of a cell has left, so that it can be measured again.
func (d *Dir) Discard(name string) error {
	if err := CheckName(name); err != nil {
		return err
	}
	return os.RemoveAll(filepath.Join(d.path, cellsDir, filepath.FromSlash(name)))
}

// WriteRepeat stores a complete repeat in the directory of its cell, which exists. A repeat that was not stored is not
// complete.
func (d *Dir) WriteRepeat(name string, repeat any) error {
	return d.replace(filepath.Join(cellsDir, filepath.FromSlash(name), repeatFile), repeat)
}

// HasRepeat reports whether a repeat is complete.
func (d *Dir) HasRepeat(name string) bool {
	_, err := os.Stat(filepath.Join(d.path, cellsDir, filepath.FromSlash(name), repeatFile))
	return err == nil
}

// ReadRepeat reads what WriteRepeat stored.
func (d *Dir) ReadRepeat(name string, into any) error {
	path := filepath.Join(d.path, cellsDir, filepath.FromSlash(name), repeatFile)
	text, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read repeat: %w", err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read repeat: %s: %w\nremove this file to measure the repeat again", path, err)
	}
	return nil
}
