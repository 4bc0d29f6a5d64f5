package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node"
	"github.com/stagebench/stagebench/targets/budget"
	"github.com/stagebench/stagebench/targets/local"
)

// nodeVerb is the hidden command that becomes a node of the system under test.
const nodeVerb = "node"

func nodeCommand(s streams) *cobra.Command {
	return &cobra.Command{
		Use:    nodeVerb,
		Short:  "Become a node: configuration on stdin, ready line on stdout, logs on stderr",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return node.Run(cmd.Context(), s.in, s.out, s.err)
		},
	}
}

// bringer brings topologies up on this machine: the options that all of them share.
type bringer local.Options

// newBringer looks for what bringing up needs. Close its budgets when done.
func newBringer(data sut.Data, log *slog.Logger, progress func(string)) (b bringer, err error) {
	binary, err := os.Executable()
	if err != nil {
		return b, fmt.Errorf("find our own binary, which every node runs: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil {
		cache = os.TempDir()
	}
	return bringer{
		Binary: binary, NodeArgs: []string{nodeVerb}, Data: data,
		TemplateDir: filepath.Join(cache, "stagebench", "templates"), TemplateVersion: node.TemplateVersion,
		Budgets: budget.Detect(budget.Options{}), Admit: fits, Log: log, Progress: progress,
	}, nil
}

// up brings a topology up; the logs of its nodes go to logDir.
func (b bringer) up(ctx context.Context, t sut.Topology, logDir string) (*local.System, error) {
	b.Topology, b.LogDir = t, logDir
	return local.Up(ctx, local.Options(b))
}

// dataOf checks the name of a data set.
func dataOf(size string, seed uint64) (sut.Data, error) {
	d := sut.Data{Size: size, Seed: seed}
	if _, known := d.Counts(); !known {
		return d, exit.Usagef("unknown data set %q\nwant one of %v", size, sut.DataSizes())
	}
	return d, nil
}

// knobsOf combines --engines and --set; what --set names wins.
func knobsOf(engines string, settings []string) (sut.Knobs, error) {
	given, err := ladder.ParseKnobs(settings)
	if err != nil {
		return nil, exit.Usagef("%w\nsee: stagebench list knobs", err)
	}
	knobs := sut.Knobs{}
	if engines != "embedded" && engines != "native" {
		return nil, exit.Usagef("unknown engines %q\nwant embedded or native; one role alone is chosen with --set, for example --set db.engine=postgres", engines)
	}
	for _, tier := range ladder.Tiers() {
		first := slices.IndexFunc(tier.Engines, func(e ladder.EngineInfo) bool { return e.Native == (engines == "native") })
		if len(tier.Engines) > 1 && first >= 0 {
			knobs[string(tier.Role)+".engine"] = string(tier.Engines[first].Name)
		}
	}
	maps.Copy(knobs, given)
	return knobs, nil
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
