// Package rundir stores a run in a directory: configuration, results and raw data.
//
//	runs/<id>/manifest.json              what was run, and on which machine
//	runs/<id>/summary.json               every cell
//	runs/<id>/cells/<cell>/latency.hlog  HDR interval log, written by results/hdr
//	runs/<id>/cells/<cell>/timeline.csv  one row per second, see TimelineRow
//	runs/<id>/cells/<cell>/logs/         logs of the nodes
//	runs/<id>/cells/<cell>/repeat.json   a complete repeat of a matrix
//	runs/latest                          link to the newest complete run without --out
//
// It computes nothing and deletes no run. Discard deletes a part that will be measured
// again. manifest.json and summary.json are replaced by a rename. The other files grow
// by complete lines. So a run is readable at any moment, and after its process was
// killed. Nothing is synced to disk: a run survives a crash of its process, but not a
// crash of the machine.
//
// Order of calls: Create, then Cell, WriteManifest and WriteSummary in any order
// and any number of times; Read at any time. A Dir may be used concurrently. The
// results of CreateLatency and CreateTimeline belong to one goroutine each.
package rundir

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
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

// NewID returns the id of a run that starts now. Ids sort by time. The tag
// distinguishes runs that start in the same second.
func NewID(now time.Time, tag uint32) string {
	return fmt.Sprintf("%s-%06x", now.UTC().Format("20060102-150405"), tag&0xffffff)
}

// DefaultPath returns the directory of a run without --out.
func DefaultPath(id string) string { return filepath.Join("runs", id) }

// Create makes the directory of a new run, with the manifest and a summary without
// cells. It returns an error if the directory already holds a run.
func Create(path string, m results.Manifest) (*Dir, error) {
	if err := os.MkdirAll(path, 0o755); err != nil {
		return nil, fmt.Errorf("create run directory: %w\nchoose another one with --out DIR", err)
	}
	if _, err := os.Lstat(filepath.Join(path, manifestFile)); err == nil {
		return nil, occupied(path)
	}
	// Mkdir fails if the directory exists. So if two runs start with the same --out,
	// only one of them can use it.
	switch err := os.Mkdir(filepath.Join(path, cellsDir), 0o755); {
	case errors.Is(err, fs.ErrExist):
		return nil, occupied(path)
	case err != nil:
		return nil, fmt.Errorf("create run directory: %w\nchoose another one with --out DIR", err)
	}
	d := &Dir{path: path}
	// Write the summary first: a reader that finds a manifest expects a summary.
	if err := errors.Join(d.WriteSummary(results.Run{Run: m.Run}), d.WriteManifest(m)); err != nil {
		return nil, fmt.Errorf("%w\nchoose another directory with --out DIR", err)
	}
	return d, nil
}

func occupied(path string) error {
	return fmt.Errorf("%s already holds a run\nchoose another directory with --out DIR, or remove this one first", path)
}

// Read returns the summary and the manifest of the run in a directory. The run may
// be complete, still running or killed. Read returns an error for another schema
// version.
func Read(path string) (r results.Run, m results.Manifest, err error) {
	if err = read(path, manifestFile, &m, &m.Schema); err == nil {
		err = read(path, summaryFile, &r, &r.Schema)
	}
	if err != nil {
		return results.Run{}, results.Manifest{}, err
	}
	return r, m, nil
}

// read decodes a file of the run in dir into a value. The pointer schema is its
// schema field, which read checks.
func read(dir, name string, into any, schema *int) error {
	path := filepath.Join(dir, name)
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("read run: %s is not a regular file", path)
	}
	text, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s is not a run: it has no %s\nname the directory of a run, such as runs/latest", dir, name)
	}
	if err != nil {
		return fmt.Errorf("read run: %w", err)
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read run: %s: %w", path, err)
	}
	if *schema != results.Schema {
		return fmt.Errorf("%s has schema version %d, and only version %d can be read\n"+
			"use the version of stagebench that wrote it (see \"version\" in %s)",
			path, *schema, results.Schema, filepath.Join(dir, manifestFile))
	}
	return nil
}

// Path returns the path that was passed to Create.
func (d *Dir) Path() string { return d.path }

// WriteManifest replaces manifest.json. It sets the schema version.
func (d *Dir) WriteManifest(m results.Manifest) error {
	m.Schema = results.Schema
	m.Warnings = listed(m.Warnings)
	return d.replace(manifestFile, m)
}

// WriteSummary replaces summary.json with what EncodeSummary writes.
func (d *Dir) WriteSummary(r results.Run) error { return d.replace(summaryFile, summary(r)) }

// EncodeSummary writes a run as summary.json holds it. It sets the schema version, and writes nil
// lists as empty lists.
func EncodeSummary(w io.Writer, r results.Run) error { return encode(w, summary(r)) }

func summary(r results.Run) results.Run {
	r.Schema = results.Schema
	r.Warnings, r.Cells = listed(r.Warnings), listed(r.Cells)
	for i := range r.Cells {
		c := &r.Cells[i]
		c.Steps, c.Repeats, c.Warnings = listed(c.Steps), listed(c.Repeats), listed(c.Warnings)
	}
	return r
}

// encode writes a value as indented JSON.
func encode(w io.Writer, value any) error {
	encoder := json.NewEncoder(w)
	encoder.SetEscapeHTML(false) // keep "p99<100ms" readable
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

// listed returns a copy of the list that is never nil.
func listed[T any](list []T) []T { return append([]T{}, list...) }

// PointLatest makes the link "latest" next to the run's directory point to it. The
// link is optional: a run must not fail because the file system has no links.
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
	// Make a new link and rename it over the old one, so that a reader always finds a
	// link. First remove a temporary link of an earlier attempt.
	temp := path + ".latest"
	if err := os.Remove(temp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	if err := os.Symlink(filepath.Base(path), temp); err != nil {
		return err
	}
	if err := os.Rename(temp, link); err != nil {
		return errors.Join(err, os.Remove(temp))
	}
	return nil
}

// replace writes a file under a temporary name and renames it. So the file always
// has either the old or the new content, even if the process is killed.
func (d *Dir) replace(name string, value any) (err error) {
	var text bytes.Buffer
	if err := encode(&text, value); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	// The umask decides who else may read results. os.CreateTemp would exclude everybody.
	temp, err := os.OpenFile(filepath.Join(d.path, filepath.Dir(name), "."+filepath.Base(name)+"."+rand.Text()),
		os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("write %s: %w", name, errors.Join(err, os.Remove(temp.Name())))
		}
	}()
	_, err = temp.Write(text.Bytes())
	if err = errors.Join(err, temp.Close()); err != nil {
		return err
	}
	return os.Rename(temp.Name(), filepath.Join(d.path, name))
}
