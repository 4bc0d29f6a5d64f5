package main

import (
	"context"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/node"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/targets/budget"
	"github.com/stagebench/stagebench/targets/local"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/preset"
)

// bringer brings topologies up on this machine.
type bringer struct {
	binary    string
	templates string
	data      sut.Data
	budgets   *budget.Manager
	log       *slog.Logger
	progress  func(string)
}

// newBringer looks for what bringing up needs. Close its budgets when done.
func newBringer(data sut.Data, log *slog.Logger, progress func(string)) (*bringer, error) {
	binary, err := os.Executable()
	if err != nil {
		return nil, fmt.Errorf("find our own binary, which every node runs: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return &bringer{
		binary: binary, templates: filepath.Join(cache, "stagebench", "templates"),
		data: data, budgets: budget.Detect(budget.Options{}), log: log, progress: progress,
	}, nil
}

// up brings a topology up; the logs of its nodes go to logDir.
func (b *bringer) up(ctx context.Context, t sut.Topology, logDir string) (*local.System, error) {
	return local.Up(ctx, local.Options{
		Binary: b.binary, NodeArgs: []string{nodeVerb}, Topology: t, Data: b.data,
		TemplateDir: b.templates, TemplateVersion: node.TemplateVersion(),
		LogDir: logDir, Budgets: b.budgets, Log: b.log, Progress: b.progress,
	})
}

// dataOf checks the name of a data set.
func dataOf(size string, seed uint64) (sut.Data, error) {
	d := sut.Data{Size: size, Seed: seed}
	if _, known := d.Counts(); !known {
		return d, usagef("unknown data set %q\nwant one of %v", size, sut.DataSizes())
	}
	return d, nil
}

// knobsOf combines --engines and --set; what --set names wins.
func knobsOf(engines string, settings []string) (sut.Knobs, error) {
	given, err := sut.ParseKnobs(settings)
	if err != nil {
		return nil, usagef("%w\nsee: stagebench list knobs", err)
	}
	knobs := sut.Knobs{}
	for _, role := range []sut.Role{sut.DB, sut.Balance} {
		for _, e := range sut.EnginesOf(role) {
			switch {
			case engines == "embedded" && !e.Native(), engines == "native" && e.Native():
				knobs[string(role)+".engine"] = string(e)
			case engines != "embedded" && engines != "native":
				return nil, usagef("unknown engines %q\nwant embedded or native; one role alone is chosen with --set, for example --set db.engine=postgres", engines)
			}
		}
	}
	for name, value := range given {
		knobs[name] = value
	}
	return knobs, nil
}

// uploadCount is how many different JPEGs are uploaded in turns, of the default
// size.
const (
	uploadCount  = 16
	uploadWidth  = 160
	uploadHeight = 120
)

// workloadMaker returns the function that makes shipped workloads for a data
// set.
func workloadMaker(data sut.Data) func(name string) (workloads.Workload, error) {
	counts, _ := data.Counts()
	set := photos.NewDataset(counts, data.Seed)
	var uploads [][]byte
	for i := range uploadCount {
		uploads = append(uploads, imaging.Sample(data.Seed+uint64(i), uploadWidth, uploadHeight))
	}
	return func(name string) (workloads.Workload, error) {
		return preset.New(name, preset.Params{
			Seed: data.Seed, Users: counts.Users, Photos: counts.Photos,
			Login:   func(user int) (string, string) { return sut.SeedLogin(user), sut.SeedPassword },
			Owner:   func(photo int) int { return int(set.Owner(photos.ID(photo))) },
			Uploads: uploads,
		})
	}
}

// missingEngines says which native servers the topologies need and this machine
// lacks.
func missingEngines(topologies []sut.Topology) error {
	for _, t := range topologies {
		for _, n := range t.Nodes {
			if err := node.Installed(n.Engine); err != nil {
				return fmt.Errorf("stage %s needs %s: %w", t.Stage, n.Engine, err)
			}
		}
	}
	return nil
}
