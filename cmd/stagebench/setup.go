package main

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/cmd/internal/machine"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/live"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node"
	"github.com/stagebench/stagebench/targets/budget"
	"github.com/stagebench/stagebench/targets/control"
	"github.com/stagebench/stagebench/targets/local"
	"github.com/stagebench/stagebench/targets/proc"
)

// nodeVerb is the hidden command that runs one node of the system under test.
const nodeVerb = "node"

func nodeCommand(s streams) *cobra.Command {
	return &cobra.Command{
		Use:    nodeVerb,
		Short:  "Run one node: configuration on stdin, ready line on stdout, logs on stderr",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return node.Run(cmd.Context(), s.in, s.out, s.err)
		},
	}
}

// launcher brings topologies up on this machine. It holds the options that all of them share.
type launcher local.Options

// newLauncher returns a launcher for this machine. The caller must close its Budgets.
func newLauncher(data sut.Data, log *slog.Logger, progress func(string)) (b launcher, err error) {
	binary, err := os.Executable()
	if err != nil {
		return b, fmt.Errorf("find the stagebench binary, which every node runs: %w", err)
	}
	cache, err := os.UserCacheDir()
	if err != nil { // there is no home directory
		cache = control.DefaultDir()
		if err := proc.PrivateDir(cache); err != nil {
			return b, fmt.Errorf("make the template directory: %w\nset HOME, or XDG_CACHE_HOME", err)
		}
	}
	return launcher{
		Binary: binary, NodeArgs: []string{nodeVerb}, Data: data,
		TemplateDir: templatesIn(cache), TemplateVersion: node.TemplateVersion, Release: node.Release,
		Budgets: budget.Detect(budget.Options{}), Admit: fits, Log: log, Progress: progress,
	}, nil
}

// templatesIn returns the directory of the templates in a cache directory.
func templatesIn(cache string) string { return filepath.Join(cache, "stagebench", "templates") }

// sweep removes what killed commands of this user have left behind. It returns nothing of interest: what cannot be
// removed does no harm.
func sweep() (struct{}, error) {
	leftovers := local.Options{Release: node.Release}
	if cache, err := os.UserCacheDir(); err == nil {
		leftovers.TemplateDir = templatesIn(cache)
	}
	local.Sweep(leftovers)
	_, _ = control.List(control.DefaultDir())
	return struct{}{}, nil
}

// up brings a topology up. Its nodes log to logDir.
func (b launcher) up(ctx context.Context, t sut.Topology, logDir string) (*local.System, error) {
	b.Topology, b.LogDir = t, logDir
	return local.Up(ctx, local.Options(b))
}

// dataOf returns the data set of this size, or a usage error.
func dataOf(size string, seed uint64) (sut.Data, error) {
	d := sut.Data{Size: size, Seed: seed}
	if _, known := d.Counts(); !known {
		return d, exit.Usagef("unknown data set %q\nwant one of %v", size, sut.DataSizes())
	}
	return d, nil
}

// knobsOf combines --engines and --set. A knob in --set overrides --engines.
func knobsOf(engines string, settings []string) (sut.Knobs, error) {
	given, err := ladder.ParseKnobs(settings)
	if err != nil {
		for _, setting := range settings {
			name, _, _ := strings.Cut(setting, "=")
			if meant := didYouMean("", name, knobNames()); meant != "" && !slices.Contains(knobNames(), name) {
				return nil, exit.Usagef("unknown knob %q%s\nsee: stagebench list knobs", name, meant)
			}
		}
		return nil, exit.Usagef("%w\nsee: stagebench list knobs", err)
	}
	knobs := sut.Knobs{}
	if engines != "embedded" && engines != "native" {
		return nil, exit.Usagef("unknown engines %q\nwant embedded or native; "+
			"to choose the engine of one role, use --set, for example --set db.engine=postgres", engines)
	}
	for _, tier := range ladder.Tiers() {
		first := slices.IndexFunc(tier.Engines, func(e ladder.EngineInfo) bool {
			return e.Native == (engines == "native")
		})
		if ladder.Selectable(tier.Role) && first >= 0 {
			knobs[string(tier.Role)+".engine"] = string(tier.Engines[first].Name)
		}
	}
	maps.Copy(knobs, given)
	return knobs, nil
}

// planOf returns the plan of the flags --quick and --full.
func planOf(quick, full bool) (cell.Plan, error) {
	switch {
	case quick && full:
		return cell.Plan{}, exit.Usagef("--quick and --full exclude each other\nuse at most one of them")
	case quick:
		return cell.Quick(), nil
	case full:
		return cell.Full(), nil
	}
	return cell.Default(), nil
}

// knobNames lists the names of all knobs.
func knobNames() (names []string) {
	for _, k := range ladder.Catalogue() {
		names = append(names, k.Name)
	}
	return names
}

// stageNames lists the names of all stages, in the order of the ladder.
func stageNames() (names []string) {
	for _, info := range ladder.Stages() {
		names = append(names, string(info.Stage))
	}
	return names
}

// build returns the topology of a stage on this machine. An error is a usage error.
func build(stage string, knobs sut.Knobs) (sut.Topology, error) {
	t, err := buildOf(stage, knobs, cell.Unit(cell.Cores()))
	return t, cmp.Or(err, fits(t))
}

// buildOf returns the topology of a stage with hosts of this CPU unit. An error is a usage error.
func buildOf(stage string, knobs sut.Knobs, unit float64) (sut.Topology, error) {
	t, err := ladder.Build(sut.Stage(stage), knobs, unit)
	if err != nil {
		meant := ""
		if names := stageNames(); !slices.Contains(names, stage) {
			meant = didYouMean("", stage, names)
		}
		return t, exit.Usagef("%w%s\nsee: stagebench list stages, stagebench list knobs", err, meant)
	}
	return t, nil
}

// missingEngines returns an error if a topology needs a native server that is not installed.
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

// maxUnquiet is how long a run waits for a quiet machine, and quickUnquiet how long a matrix with coarse results does.
const (
	maxUnquiet   = 30 * time.Second
	quickUnquiet = time.Second
)

// awaitQuiet waits until other processes leave the machine alone. If they do not within a time, the run says so.
func awaitQuiet(
	ctx context.Context, patience time.Duration, m *results.Manifest, dir *rundir.Dir, progress *live.Progress,
) error {
	reason, err := machine.AwaitQuiet(ctx, patience, func(reason string) {
		progress.Note(fmt.Sprintf("waiting up to %v for a quiet machine: %s", patience, reason))
	})
	if err != nil || reason == "" {
		return err
	}
	m.Warnings = append(m.Warnings, "the machine was not quiet before the first cell: "+reason)
	return dir.WriteManifest(*m)
}
