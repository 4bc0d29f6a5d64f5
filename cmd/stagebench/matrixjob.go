package main

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/cmd/internal/load"
	"github.com/stagebench/stagebench/cmd/internal/matrix"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets/attach"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/driver"
)

// matrixJob is a checked matrix: what is measured, and how.
type matrixJob struct {
	file      *matrix.File
	specs     []cell.Spec // by cell
	names     []string    // of cells, for people
	order     []matrix.Unit
	plan      cell.Plan
	slo       results.SLO
	data      sut.Data
	questions []matrix.Question
	client    driver.ClientConfig // what the clients of all targets have in common

	// Used while the job is made: loads by name, and cells by directory.
	loads       map[string]load.Load
	directories map[string]int

	dir      *rundir.Dir
	manifest results.Manifest
	joined   []cell.Joined    // by cell
	errors   map[int][]string // by cell
}

// job reads and checks a matrix file. It starts nothing.
func (o matrixOptions) job(ctx context.Context) (*matrixJob, error) {
	text, err := os.ReadFile(o.file)
	if err != nil {
		return nil, exit.Usagef("matrix file: %w\nname a file that you can read; for its content see: "+
			"stagebench matrix --help", err)
	}
	j := &matrixJob{loads: map[string]load.Load{}, directories: map[string]int{}}
	if j.file, err = matrix.Read(text, o.file); err != nil {
		return nil, exit.Usage(err)
	}
	j.file.Quick = j.file.Quick || o.quick
	if j.data, err = dataOf(j.file.Data, j.file.Seed); err != nil {
		return nil, err
	}
	j.slo = results.DefaultSLO()
	if j.file.SLO != "" {
		if j.slo, err = parseSLO(j.file.SLO); err != nil {
			return nil, err
		}
	}
	if err := j.setPlan(); err != nil {
		return nil, err
	}
	if err := j.setClient(o.identity); err != nil {
		return nil, err
	}
	for i := range j.file.Cells {
		if err := j.addCell(ctx, o, i); err != nil {
			return nil, err
		}
	}
	if j.file.SLO != "" {
		var loads []load.Load
		for _, spec := range j.specs {
			loads = append(loads, spec.Load)
		}
		if err := checkClasses(j.slo, loads); err != nil {
			return nil, err
		}
	}
	j.order = j.file.Order()
	return j, j.ask(o.question)
}

// wholeReference is how long all repeats of a cell together measure the latency of a search: at the default reference
// rate, ten samples lie beyond the 99th percentile.
const wholeReference = 11250 * time.Millisecond

// setPlan sets the plan of one repeat.
func (j *matrixJob) setPlan() error {
	j.plan = cell.Default()
	j.plan.Mode = "matrix"
	j.plan.Reference = max(j.plan.Reference, wholeReference/time.Duration(j.file.Repeats))
	if j.file.Quick {
		j.plan = cell.Quick()
	}
	j.plan.Visits, j.plan.Repeats, j.plan.Freeze = 1, 1, false
	j.plan = j.plan.For(cell.Unit(cell.Cores()))
	if r := j.file.Reference; r > 0 {
		if r > j.plan.Search.Max {
			return exit.Usagef("reference %v\nwant 1 to %v requests/s", r, j.plan.Search.Max)
		}
		j.plan.ReferenceRPS = r
	}
	return nil
}

// setClient sets headers and certificates of the clients of targets.
func (j *matrixJob) setClient(i load.Identity) (err error) {
	if j.client.Header, err = i.Header(os.Getenv); err != nil {
		return exit.Usage(err)
	}
	j.client.TLS, err = i.TLS()
	return exit.Usage(err)
}

// addCell makes the specification of a cell.
func (j *matrixJob) addCell(ctx context.Context, o matrixOptions, i int) (err error) {
	c := j.file.Cells[i]
	spec := cell.Spec{}
	if variant := j.file.Variant(c); variant != "" {
		spec.Variant = rundir.CellName(variant)
	}
	if service, ok := j.file.Service(c); ok {
		err = j.addTarget(ctx, o, c, service, &spec)
	} else {
		err = j.addStage(c, &spec)
	}
	if err != nil {
		return err
	}
	name := spec.Load.Workload.Name()
	if rundir.CheckName(name) != nil {
		return exit.Usage(j.file.At(c, fmt.Errorf("workload %q cannot be the name of a directory\n"+
			"set another name in the workload file: name: shop", name), matrix.Workload))
	}
	if c[matrix.Rate] != matrix.Search {
		if spec.Load.Times != nil {
			return exit.Usage(j.file.At(c, fmt.Errorf("%s has its own times, so it has no rate\n"+
				"exclude these cells, or choose another workload", name), matrix.Workload))
		}
		rps, err := strconv.ParseFloat(c[matrix.Rate], 64)
		if err != nil || rps > j.plan.Search.Max {
			return exit.Usage(j.file.At(c, fmt.Errorf("rate %s: want 1 to %v requests/s",
				c[matrix.Rate], j.plan.Search.Max), matrix.Rate))
		}
		spec.Fixed = &cell.Fixed{RPS: rps, Duration: j.file.Duration}
	}
	directory := cell.RepeatName(spec, 0)
	if k, known := j.directories[directory]; known {
		return exit.Usagef("%s: the cells %q and %q would have the same directory\n"+
			"choose other names of workloads, or other values", o.file, j.file.Name(j.file.Cells[k]), j.file.Name(c))
	}
	j.directories[directory] = i
	j.specs, j.names = append(j.specs, spec), append(j.names, j.file.Name(c))
	return nil
}

// addStage adds the topology and the load of a cell with a stage.
func (j *matrixJob) addStage(c matrix.Cell, spec *cell.Spec) (err error) {
	var settings, axes []string
	for _, knobs := range []map[string]string{j.file.Set, c.Knobs()} {
		for name, value := range knobs {
			settings, axes = append(settings, name+"="+value), append(axes, name)
		}
	}
	slices.Sort(axes) // the place of an error is the same in each run
	knobs, err := knobsOf(c[matrix.Engines], settings)
	if err == nil {
		spec.Topology, err = build(c[matrix.Stage], knobs)
	}
	if err != nil {
		exact := func(axis string) bool { return strings.Contains(err.Error(), axis+"="+c[axis]) }
		named := slices.DeleteFunc(axes, func(axis string) bool { return !exact(axis) })
		return exit.Usage(j.file.At(c, err, append(named, matrix.Stage)...))
	}
	known, ok := j.loads[c[matrix.Workload]]
	if !ok {
		maker := load.Maker{Data: j.data, Replay: load.Replay{Speed: 1}, Service: true}
		if known, err = maker.Make(j.beside(c[matrix.Workload])); err != nil {
			return exit.Usage(j.file.At(c, err, matrix.Workload))
		}
		j.loads[c[matrix.Workload]] = known
	}
	spec.Load = known
	return nil
}

// beside returns the name of a workload with the path of its file: relative to the matrix file.
func (j *matrixJob) beside(name string) string {
	path, isTrace := strings.CutPrefix(name, "trace:")
	isFile := isTrace || slices.Contains([]string{".yaml", ".yml"}, filepath.Ext(name))
	switch {
	case !isFile || filepath.IsAbs(path):
		return name
	case isTrace:
		return "trace:" + filepath.Join(filepath.Dir(j.file.Path()), path)
	}
	return filepath.Join(filepath.Dir(j.file.Path()), path)
}

// addTarget adds the target and the load of a cell with a service of the user.
func (j *matrixJob) addTarget(
	ctx context.Context, o matrixOptions, c matrix.Cell, s matrix.Service, spec *cell.Spec,
) error {
	at := func(err error, axis string) error { return exit.Usage(j.file.At(c, err, axis)) }
	endpoint, err := attach.Parse(ctx, s.URL, o.allow)
	if err != nil {
		return at(err, matrix.Target)
	}
	if _, err := attach.Parse(ctx, s.Ready, o.allow); err != nil {
		return at(fmt.Errorf("ready: %w", err), matrix.Target)
	}
	a := aim{method: http.MethodGet, seed: j.file.Seed}
	if c[matrix.Workload] != matrix.URL {
		a.workload = j.beside(c[matrix.Workload])
	}
	d := destination{endpoint: endpoint}
	if spec.Load, err = a.load(ctx, &d, load.Maker{Data: j.data, Replay: load.Replay{Speed: 1}}); err != nil {
		return at(err, matrix.Workload)
	}
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find the stagebench binary, which runs the commands: %w", err)
	}
	commands := attach.Commands{Up: s.Up, Down: s.Down, Dir: filepath.Dir(j.file.Path())}
	spec.Topology.Knobs = sut.Knobs{}
	for _, knobs := range []map[string]string{j.file.Set, c.Knobs()} {
		for name, value := range knobs {
			commands.Env, spec.Topology.Knobs[name] = append(commands.Env, name+"="+value), value
		}
	}
	slices.Sort(commands.Env)
	ready := attach.Ready{URL: s.Ready, Header: http.Header{}, TLS: j.client.TLS, Patience: s.Wait}
	for name, value := range j.client.Header {
		ready.Header.Set(name, value)
	}
	spec.Attached = &cell.Attached{
		Name: s.Name, Endpoint: d.endpoint, Remote: !attach.OnThisMachine(ctx, endpoint), Clients: j.client,
		Start: func(ctx context.Context, logs string) (func(context.Context) error, error) {
			path, err := filepath.Abs(filepath.Join(j.dir.Path(), ".target.lock"))
			if err != nil {
				return nil, err
			}
			commands.Lock = path
			return attach.Start(ctx, program, []string{targetVerb}, commands, ready, logs)
		},
	}
	return nil
}

// ask sets the questions: that of the flags, or else those of the file. What they leave out is filled in.
func (j *matrixJob) ask(flags matrix.Question) error {
	j.questions = j.file.Tables
	if flags != (matrix.Question{}) || len(j.questions) == 0 {
		if err := j.file.Check(flags); err != nil {
			return exit.Usagef("%w\nsee: stagebench matrix --help", err)
		}
		j.questions = []matrix.Question{flags}
	}
	j.questions = slices.Clone(j.questions)
	searches := slices.ContainsFunc(j.specs, func(s cell.Spec) bool { return s.Fixed == nil && s.Load.Times == nil })
	for i := range j.questions {
		q := &j.questions[i]
		for _, name := range j.file.Varied() {
			switch {
			case q.Rows == "" && q.Columns != name:
				q.Rows = name
			case q.Columns == "" && q.Rows != name:
				q.Columns = name
			}
		}
		if q.Figure == "" {
			q.Figure = "p99"
			if searches {
				q.Figure = "capacity"
			}
		}
	}
	return nil
}

// connections returns the number of connections of the driver.
func (j *matrixJob) connections() int {
	if j.file.Connections > 0 {
		return j.file.Connections
	}
	return cell.Connections(cell.Cores())
}

// forecast returns the forecast of the durations.
func (j *matrixJob) forecast() *cell.Forecast {
	native := slices.ContainsFunc(j.file.Cells, func(c matrix.Cell) bool { return c[matrix.Engines] == "native" })
	return cell.NewForecast(j.plan, native)
}

// topologies returns those of all cells with a stage.
func (j *matrixJob) topologies() (all []sut.Topology) {
	for _, s := range j.specs {
		if s.Attached == nil {
			all = append(all, s.Topology)
		}
	}
	return all
}

// config returns the effective configuration for the manifest. Its digest covers everything that decides what is
// measured, so that a run is continued only with the same cells.
func (j *matrixJob) config() map[string]any {
	config := map[string]any{
		"plan": j.plan, "slo": j.slo.String(), "data": j.data, "connections": j.connections(), "repeats": j.file.Repeats,
		"duration": j.file.Duration.String(), "axes": j.file.Axes, "cells": j.file.Cells, "set": j.file.Set,
		"targets": j.file.Services,
	}
	digest := sha256.New()
	encoder := json.NewEncoder(digest)
	must(encoder.Encode(config))
	hashes := map[string]string{}
	for _, s := range j.specs {
		name := s.Load.Workload.Name()
		if _, known := hashes[name]; !known {
			hashes[name] = workloads.Hash(s.Load.Workload, 0, hashedOps)
		}
		var endpoint *url.URL
		if s.Attached != nil {
			endpoint = s.Attached.Endpoint
		}
		must(encoder.Encode([]any{s.Topology.Digest(), hashes[name], s.Load.Length, s.Variant, endpoint}))
	}
	config[digestKey] = hex.EncodeToString(digest.Sum(nil)[:16])
	config["mode"] = j.plan.Mode
	return config
}
