package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets/control"
)

// upOptions are the flags of `stagebench up`.
type upOptions struct {
	stage, engines, data, logs string
	set                        []string
	seed                       uint64
}

func upCommand(s streams) *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a stage up and keep it running until Ctrl-C or `stagebench down`",
		Example: `  stagebench up --stage lb
  stagebench up --stage lb --engines native --set web.hosts=2
then, in another terminal:
  stagebench status
  stagebench attack --workload read-heavy --rate 100
  stagebench kill web-2`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s) },
	}
	f := cmd.Flags()
	f.StringVar(&o.stage, "stage", string(sut.Single), "stage; see: stagebench list stages")
	f.StringVar(&o.engines, "engines", "embedded", "embedded (nothing to install) or native (PostgreSQL, HAProxy)")
	f.StringArrayVar(&o.set, "set", nil, "set a knob, NAME=VALUE; may be repeated; see: stagebench list knobs")
	f.StringVar(&o.data, "data", "small", "size of the data set")
	f.StringVar(&o.logs, "logs", "", "directory of the nodes' logs (default: a temporary one)")
	f.Uint64Var(&o.seed, "seed", 1, "seed of the data")
	return cmd
}

func (o upOptions) run(ctx context.Context, s streams) (err error) {
	data, err := dataOf(o.data, o.seed)
	if err != nil {
		return err
	}
	knobs, err := knobsOf(o.engines, o.set)
	if err != nil {
		return err
	}
	topology, err := ladder.Build(sut.Stage(o.stage), knobs, cell.Unit(cell.Cores()))
	if err != nil {
		return exit.Usagef("%w\nsee: stagebench list stages, stagebench list knobs", err)
	}
	if err := errors.Join(fits(topology), missingEngines([]sut.Topology{topology})); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: slog.LevelInfo}))
	up, err := newLauncher(data, log, func(text string) { _, _ = fmt.Fprintln(s.err, text) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, up.Budgets.Close()) }()
	logs, cleanLogs, err := o.logDir()
	if err != nil {
		return err
	}
	defer cleanLogs()
	system, err := up.up(ctx, topology, logs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, system.Down(context.WithoutCancel(ctx))) }()
	_, _ = fmt.Fprintf(s.out, "stage %s is up at %s (%v, hosts: %s)\n", topology.Stage,
		strings.Join(system.Endpoints(), " and "), system.BringUp().Round(time.Millisecond), up.Budgets.Describe())
	if err := table.Render(s.out, statusTable(system.Status()), table.FormatText); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(s.out, "logs: %s\nto stop the system: Ctrl-C or `stagebench down`\n", logs)
	id := fmt.Sprintf("%s-%d", topology.Stage, os.Getpid())
	info := control.Info{ID: id, Stage: topology.Stage, Data: data, LogDir: logs}
	return control.Serve(ctx, control.DefaultDir(), info, system)
}

// logDir returns the log directory. The function clean removes it if it is temporary.
func (o upOptions) logDir() (dir string, clean func(), err error) {
	if o.logs != "" {
		dir, err = filepath.Abs(o.logs)
		return dir, func() {}, errors.Join(err, os.MkdirAll(o.logs, 0o755))
	}
	dir, err = os.MkdirTemp("", "stagebench-logs-")
	return dir, func() { _ = os.RemoveAll(dir) }, err
}
