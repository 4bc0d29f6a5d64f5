package main

import (
	"os"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
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

// createRun makes the directory of a run: the given one, or else one with the id of the run.
func createRun(out string, m results.Manifest) (*rundir.Dir, error) {
	if out == "" {
		out = rundir.DefaultPath(m.Run)
	}
	return rundir.Create(out, m)
}
