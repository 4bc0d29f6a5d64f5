// Package rundir keeps a run as a directory: what was asked for, what was
// measured, and the raw material behind it.
//
//	runs/<id>/manifest.json              what was run, on what
//	runs/<id>/summary.json               every cell
//	runs/<id>/cells/<cell>/latency.hlog  HDR interval log, written by results/hdr
//	runs/<id>/cells/<cell>/timeline.csv  one row per second, see TimelineRow
//	runs/<id>/cells/<cell>/logs/         what the nodes logged
//	runs/latest                          points to the newest run
//
// It computes nothing and never deletes a run. manifest.json and summary.json
// are replaced as a whole by a rename; the other files grow by whole lines. So
// a run can be read at any moment, and after its process was killed. Nothing is
// synced to disk: a run survives the death of its process, not of its machine.
//
// Order of calls: Create, then Cell, WriteManifest and WriteSummary in any
// order and as often as there is news; Read at any time. A Dir may be used
// concurrently; what CreateLatency and CreateTimeline return belongs to one
// goroutine each.
package rundir

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/stagebench/stagebench/results"
)

const (
	manifestFile = "manifest.json"
	summaryFile  = "summary.json"
	cellsDir     = "cells"
)

// Dir is the directory of one run.
type Dir struct{ path string }

// NewID returns the id of a run that starts now: ids sort by time, and the tag,
// a random number, keeps two runs of one second apart.
func NewID(now time.Time, tag uint32) string {
	return fmt.Sprintf("%s-%06x", now.UTC().Format("20060102-150405"), tag&0xffffff)
}

// DefaultPath is where a run goes that was not told where to go.
func DefaultPath(id string) string { return filepath.Join("runs", id) }

// Create makes the directory of a new run, with its manifest and a summary
// without cells. A directory that already holds a run is refused.
func Create(path string, m results.Manifest) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("create run directory: %w\nchoose another one with --out DIR", err)
	}
	if _, err := os.Lstat(filepath.Join(path, manifestFile)); err == nil {
		return nil, occupied(path)
	}
	// Mkdir either makes the directory or fails: of two runs that are started
	// with one --out, exactly one gets it.
	switch err := os.Mkdir(filepath.Join(path, cellsDir), 0o755); {
	case errors.Is(err, fs.ErrExist):
		return nil, occupied(path)
	case err != nil:
		return nil, fmt.Errorf("create run directory: %w\nchoose another one with --out DIR", err)
	}
	d := &Dir{path: path}
	// The summary comes first: a manifest promises that there is one.
	if err := d.WriteSummary(results.Run{Run: m.Run}); err != nil {
		return nil, err
	}
	return d, d.WriteManifest(m)
}

func occupied(path string) error {
	return fmt.Errorf("%s already holds a run\nchoose another directory with --out DIR, or remove this one first", path)
}

// Read returns the summary and the manifest of the run in a directory, whether
// it is complete, still running or was killed. A run of another schema version is
// refused.
func Read(path string) (r results.Run, m results.Manifest, err error) {
	if err = read(path, manifestFile, &m, &m.Schema); err == nil {
		err = read(path, summaryFile, &r, &r.Schema)
	}
	if err != nil {
		return results.Run{}, results.Manifest{}, err
	}
	return r, m, nil
}

// read reads a file of the run in dir into a value, whose field is schema.
func read(dir, name string, into any, schema *int) error {
	path := filepath.Join(dir, name)
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not a run: it has no %s\nname a directory that a run was written to, such as runs/latest",
			dir, name)
	}
	if err != nil {
		return fmt.Errorf("read run: %w", err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read run: %s: %w", path, err)
	}
	if *schema != results.Schema {
		return fmt.Errorf("%s has schema version %d, and only version %d can be read\n"+
			"use the stagebench that wrote it (\"version\" in %s)",
			path, *schema, results.Schema, filepath.Join(dir, manifestFile))
	}
	return nil
}

// Path returns the directory's path as it was given.
func (d *Dir) Path() string { return d.path }

// WriteManifest replaces manifest.json. The schema version is filled in.
func (d *Dir) WriteManifest(m results.Manifest) error {
	m.Schema = results.Schema
	m.Warnings = listed(m.Warnings)
	return d.replace(manifestFile, m)
}

// WriteSummary replaces summary.json. The schema version is filled in, and
// lists that are nil are written as empty ones.
func (d *Dir) WriteSummary(r results.Run) error {
	r.Schema = results.Schema
	r.Warnings, r.Cells = listed(r.Warnings), listed(r.Cells)
	for i := range r.Cells {
		c := &r.Cells[i]
		c.Steps, c.Repeats, c.Warnings = listed(c.Steps), listed(c.Repeats), listed(c.Warnings)
	}
	return d.replace(summaryFile, r)
}

// listed is an empty list instead of none.
func listed[T any](list []T) []T { return append([]T{}, list...) }

// PointLatest makes the link "latest" beside the run's directory point to it.
// A file system without links is a reason to go on without, so callers tell
// the user at most.
func (d *Dir) PointLatest() (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("point latest to %s: %w", d.path, err)
		}
	}()
	path, err := filepath.Abs(d.path)
	if err != nil {
		return err
	}
	link := filepath.Join(filepath.Dir(path), "latest")
	if info, err := os.Lstat(link); err == nil && info.Mode().Type() != fs.ModeSymlink {
		return fmt.Errorf("%s is not a link", link)
	}
	// A link cannot be replaced, only renamed over: no reader ever finds none.
	// What an earlier attempt left under the temporary name goes first.
	fresh := path + ".latest"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(path), fresh); err != nil {
		return err
	}
	if err := os.Rename(fresh, link); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return nil
}

// replace writes a file under a temporary name and renames it, so that a
// reader, or a kill, finds the old text or the new one and nothing between.
func (d *Dir) replace(name string, value any) (err error) {
	var text bytes.Buffer
	encoder := json.NewEncoder(&text)
	encoder.SetEscapeHTML(false) // "p99<100ms" is for people too
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(value); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	temp, err := os.CreateTemp(d.path, "."+name+".*")
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(temp.Name())))
		}
	}()
	_, err = temp.Write(text.Bytes())
	// CreateTemp makes files for their owner alone, but results are there to
	// be shown.
	if err = errors.Join(err, temp.Chmod(0o644), temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), filepath.Join(d.path, name))
}
