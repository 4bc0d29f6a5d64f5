package rundir

import (
	"bytes"
	"encoding/csv"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
)

// cellName matches elements with '/' between them. No element starts with a dot, so
// a name can neither leave the directory nor be a hidden file.
var cellName = regexp.MustCompile(`^[A-Za-z0-9_][A-Za-z0-9_.,=+-]*(/[A-Za-z0-9_][A-Za-z0-9_.,=+-]*)*$`)

// CheckName returns an error if the name of a cell, or an element of it, is not valid.
func CheckName(name string) error {
	if !cellName.MatchString(name) {
		return fmt.Errorf("cell name %q: want letters, digits and any of _ . , = + -, with / between elements", name)
	}
	return nil
}

// CellName returns a valid name of a cell, or of an element of it, with '_' for each character that is not allowed.
func CellName(name string) string {
	name = regexp.MustCompile(`[^A-Za-z0-9_.,=+-]`).ReplaceAllString(name, "_")
	if !cellName.MatchString(name) { // empty, or with a first character that is not allowed
		name = "_" + name
	}
	return name
}

// CellDir is the directory of one cell.
type CellDir struct {
	path string
}

// Cell makes the directory of a cell, for example "lb/read-heavy". A second call
// with the same name returns an error: cells cannot share a directory.
func (d *Dir) Cell(name string) (*CellDir, error) {
	if err := CheckName(name); err != nil {
		return nil, err
	}
	c := &CellDir{path: filepath.Join(d.path, cellsDir, filepath.FromSlash(name))}
	err := os.MkdirAll(c.path, 0o755)
	if err == nil {
		err = os.Mkdir(c.LogsDir(), 0o755)
	}
	switch {
	case errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("cell name %q is used twice in one run", name)
	case err != nil:
		return nil, fmt.Errorf("create cell %s: %w", name, err)
	}
	return c, nil
}

// LogsDir returns the directory of the nodes' logs. It exists.
func (c *CellDir) LogsDir() string { return filepath.Join(c.path, "logs") }

// LatencyPath returns the path of the HDR interval log.
func (c *CellDir) LatencyPath() string { return filepath.Join(c.path, "latency.hlog") }

// TimelinePath returns the path of the timeline.
func (c *CellDir) TimelinePath() string { return filepath.Join(c.path, "timeline.csv") }

// CreateLatency creates the cell's HDR interval log, and truncates an existing one.
// The file contains all data when Write returns. hdr.Log writes complete lines, so
// the file of a killed process ends with a complete line.
func (c *CellDir) CreateLatency() (io.WriteCloser, error) {
	f, err := os.Create(c.LatencyPath())
	if err != nil {
		return nil, fmt.Errorf("create latency log: %w", err)
	}
	return f, nil
}

// CreateTimeline creates the cell's timeline, and truncates an existing one. The
// file contains a row when Write returns.
func (c *CellDir) CreateTimeline() (*Timeline, error) {
	f, err := os.Create(c.TimelinePath())
	if err != nil {
		return nil, fmt.Errorf("create timeline: %w", err)
	}
	t := &Timeline{file: f}
	if err := t.write([]string{
		"second", "step", "offered", "intended", "sent", "completed", "ok", "errors", "p50_ms", "p99_ms", "events",
	}); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return t, nil
}

// TimelineRow is one second of a cell. Rates are requests per second, counts
// are ops in this second.
type TimelineRow struct {
	Second    int      // since the start of the cell's first step, from 0
	Step      string   // purpose and number of the step, "search-3"
	Offered   float64  // the step's offered rate, in rps
	Intended  int64    // ops with an intended time in this second
	Sent      int64    // ops sent in this second
	Completed int64    // ops that ended in this second with a complete response
	OK        int64    // completed ops that succeeded
	Errors    int64    // ops that failed in this second
	P50NS     *int64   // response time of this second's successes; nil = too few samples
	P99NS     *int64   // the same
	Events    []string // events of the target in this second
}

// Timeline writes timeline.csv: a header, then one line per row. Latencies are in
// milliseconds, blank if a row has none. Events are joined by "; ".
type Timeline struct{ file *os.File }

// Write appends a row.
func (t *Timeline) Write(r TimelineRow) error {
	count := func(n int64) string { return strconv.FormatInt(n, 10) }
	return t.write([]string{
		strconv.Itoa(r.Second), r.Step, strconv.FormatFloat(r.Offered, 'f', -1, 64),
		count(r.Intended), count(r.Sent), count(r.Completed), count(r.OK), count(r.Errors),
		milliseconds(r.P50NS), milliseconds(r.P99NS), strings.Join(r.Events, "; "),
	})
}

// Close ends the timeline.
func (t *Timeline) Close() error { return t.file.Close() }

func (t *Timeline) write(record []string) error {
	// One write per line: a killed process leaves only complete lines.
	var line bytes.Buffer
	err := csv.NewWriter(&line).WriteAll([][]string{record})
	if err == nil {
		_, err = t.file.Write(line.Bytes())
	}
	if err != nil {
		return fmt.Errorf("write timeline: %w", err)
	}
	return nil
}

func milliseconds(ns *int64) string {
	if ns == nil {
		return ""
	}
	return strconv.FormatFloat(float64(*ns)/1e6, 'f', 3, 64)
}
