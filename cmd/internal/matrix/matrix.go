// Package matrix reads matrix files, and turns them into a list of cells with an order in which they are measured. A
// matrix file is YAML:
//
//	stages: [lb, cache]                # or targets, see below
//	workloads: [read-heavy, shop.yaml] # names or files, relative to this file; default read-heavy
//	engines: [embedded, native]        # default embedded
//	drivers: [vegeta]                  # default vegeta
//	knobs:                             # axes of knobs; see: stagebench list knobs
//	  web.hosts: [2, 4]
//	  lb.policy: [round_robin, least_conn]
//	rates: [search, 100, 200]          # requests/s, or a search for the capacity; default search
//	repeats: 5                         # measurements of each cell, each with new processes; default 3
//	exclude:                           # cells with all of these values are left out
//	  - {stage: cache, lb.policy: least_conn}
//	include:                           # further cells; an axis that is not named has its values from above
//	  - {stage: lb, web.hosts: 8}
//
// Everything else has defaults:
//
//	set: {db.cpu: 4}                   # knobs of all cells
//	seed: 1                            # of data, arrivals, keys and the order of cells
//	data: small                        # data set
//	slo: p99<100ms,errors<0.1%         # objective
//	quick: false                       # short steps
//	connections: 64                    # of the driver
//	reference: 100                     # requests/s at which the latency is measured in a search
//	duration: 30s                      # of the step at a fixed rate
//	tables:                            # what is printed: any two axes and a figure
//	  - {rows: stage, columns: web.hosts, figure: capacity}
//
// Instead of stages, a file may have targets, which are services of the user:
//
//	targets:
//	  - name: old
//	    url: http://127.0.0.1:8080/
//	    up: ./old-server --port 8080 --workers $WORKERS   # optional; a command of the shell
//	    down: ./clean-up                                  # optional
//	    ready: http://127.0.0.1:8080/health               # answers when it is ready; default url
//	    wait: 1m                                          # for it to be ready
//	knobs:
//	  WORKERS: [2, 4]                                     # environment variables of up and down
//	workloads: [shop.yaml]                                # default url: requests of the URL
//
// The commands run in the directory of the matrix file, before and after each repeat.
//
// Parsing is strict, and an error lists every problem with line and column. The package is pure: it reads no file,
// measures nothing, and its order depends on the seed alone. All functions may be called concurrently.
package matrix

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// The axes that every matrix may have. All others are knobs, by their names.
const (
	Stage    = "stage"
	Target   = "target"
	Workload = "workload"
	Engines  = "engines"
	Driver   = "driver"
	Rate     = "rate"
)

// fixedAxes lists the axes that are not knobs.
func fixedAxes() []string { return []string{Stage, Target, Workload, Engines, Driver, Rate} }

// Search is the rate of a cell whose capacity is searched for.
const Search = "search"

// URL is the workload of a cell that requests the URL of its target.
const URL = "url"

// Cell is one combination of values, by axis. A knob that it lacks has its default.
type Cell map[string]string

// Knobs returns the values of the axes that are knobs.
func (c Cell) Knobs() map[string]string {
	knobs := maps.Clone(map[string]string(c))
	for _, axis := range fixedAxes() {
		delete(knobs, axis)
	}
	return knobs
}

// Axis is a dimension of a matrix. Its values are in the order of the file.
type Axis struct {
	Name   string
	Values []string
}

// Service is a target that is not a stage.
type Service struct {
	Name, URL, Up, Down, Ready string
	Wait                       time.Duration
}

// Question asks for a table: a figure by two axes.
type Question struct {
	Rows    string `json:"rows"` // "" = the first axis with several values
	Columns string `json:"columns"`
	Figure  string `json:"figure"`
}

// File is a matrix file with its defaults filled in.
type File struct {
	Axes        []Axis // with the values of all cells
	Cells       []Cell // without the order of the measurement
	Services    []Service
	Set         map[string]string // knobs of all cells
	Repeats     int
	Seed        uint64
	Data        string
	SLO         string // "" = the default
	Quick       bool
	Connections int     // 0 = the default
	Reference   float64 // requests/s; 0 = the default
	Duration    time.Duration
	Tables      []Question

	name  string
	lines map[string]position // of values, by axis and value
}

// Name returns the values of a cell that tell it apart from the others, for people: "lb read-heavy web.hosts=4".
func (f *File) Name(c Cell) string {
	return strings.TrimSpace(strings.Join([]string{c[Stage] + c[Target], c[Workload], f.Variant(c)}, " "))
}

// Variant returns the values that tell cells of one stage or target and one workload apart: "engines=native,rate=100".
func (f *File) Variant(c Cell) string {
	var parts []string
	for _, a := range f.Axes {
		if value, has := c[a.Name]; has && len(a.Values) > 1 && a.Name != Stage && a.Name != Target && a.Name != Workload {
			parts = append(parts, a.Name+"="+value)
		}
	}
	return strings.Join(parts, ",")
}

// Varied lists the axes with more than one value.
func (f *File) Varied() (names []string) {
	for _, a := range f.Axes {
		if len(a.Values) > 1 {
			names = append(names, a.Name)
		}
	}
	return names
}

// Service returns the target of a cell; ok is false if the cell has a stage.
func (f *File) Service(c Cell) (s Service, ok bool) {
	i := slices.IndexFunc(f.Services, func(s Service) bool { return s.Name == c[Target] })
	if i < 0 {
		return s, false
	}
	return f.Services[i], true
}

// At adds the place of the first of these axes whose value a file has to an error about a cell.
func (f *File) At(c Cell, err error, axes ...string) error {
	for _, axis := range axes {
		if p, known := f.lines[axis+"="+c[axis]]; known {
			return fmt.Errorf("%s:%d:%d: %w", f.name, p.line, p.column, err)
		}
	}
	return fmt.Errorf("%s: %s: %w", f.name, f.Name(c), err)
}

// Path returns the name of the file, as Read got it.
func (f *File) Path() string { return f.name }
