package main

import (
	"fmt"
	"maps"
	"os"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut"
)

// ownBinary is the running binary, even after its file was replaced.
const ownBinary = "/proc/self/exe"

// newManifest returns the manifest of a run that starts now, with the facts about binary and machine.
func newManifest(s streams, seed uint64, data string, config map[string]any) (results.Manifest, error) {
	m := results.Manifest{
		Schema: results.Schema, Run: rundir.NewID(time.Now(), uint32(os.Getpid())),
		Command: append([]string{"stagebench"}, s.args...), Started: time.Now(), Seed: seed, Data: data, Config: config,
		Digests: map[string]string{}, Engines: map[string]string{}, Warnings: []string{},
	}
	return m, rundir.FillEnvironment(&m, os.DirFS("/"), ownBinary)
}

// keepVersions adds the versions of the engines to a manifest. They are known once a system runs.
func keepVersions(dir *rundir.Dir, m *results.Manifest, cells []results.Cell) error {
	versions := map[string]string{}
	for _, c := range cells {
		maps.Copy(versions, c.Versions)
	}
	maps.DeleteFunc(versions, func(_, version string) bool { return version == "" }) // our own engines have none
	if maps.Equal(versions, m.Versions) {
		return nil
	}
	m.Versions = versions
	return dir.WriteManifest(*m)
}

// createRun makes the directory of a run: the given one, or else one with the id of the run.
func createRun(out string, m results.Manifest) (*rundir.Dir, error) {
	if out == "" {
		out = rundir.DefaultPath(m.Run)
	}
	return rundir.Create(out, m)
}

// finish makes runs/latest point to a complete run in the usual place, and says where the run is.
func finish(s streams, dir *rundir.Dir, out string, complete bool) {
	if complete && out == "" {
		_ = dir.PointLatest() // the link is optional: the path is printed
	}
	_, _ = fmt.Fprintf(s.err, "\nThe run is in %s\n", dir.Path())
}

// knobsOfAll returns the effective knobs by name: one value if all stages have the
// same, otherwise a map of values by stage.
func knobsOfAll(topologies []sut.Topology) map[string]any {
	all := map[string]any{}
	for name, value := range topologies[0].Knobs {
		all[name] = value
		byStage := map[string]string{}
		for _, t := range topologies {
			byStage[string(t.Stage)] = t.Knobs[name]
			if t.Knobs[name] != value {
				all[name] = byStage
			}
		}
	}
	return all
}

// verdict returns an error if cells of a complete run failed, and with strict also if cells are invalid.
func verdict(s streams, dir *rundir.Dir, run results.Run, strict bool) error {
	var failed, invalid int
	for _, c := range run.Cells {
		switch {
		case c.Error != "":
			failed++
		case !c.Valid:
			invalid++
		}
	}
	switch {
	case failed > 0:
		return fmt.Errorf("%d of %d cells could not be measured\nsee the nodes' logs in %s",
			failed, len(run.Cells), dir.Path())
	case invalid > 0 && strict:
		return exit.Invalidf("%d of %d cells are not valid\nsee the notes below the table", invalid, len(run.Cells))
	case invalid > 0:
		_, _ = fmt.Fprintf(s.err, "%d of %d cells are not valid: see the notes below the table\n", invalid, len(run.Cells))
	}
	return nil
}
