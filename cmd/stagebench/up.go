package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets/control"
)

// upOptions are the flags of `stagebench up`.
type upOptions struct {
	stage, engines, data, logs string
	set                        []string
	seed                       uint64
	listen                     string
}

func upCommand(s streams) *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Bring a stage up and keep it running until Ctrl-C or \"stagebench down\"",
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
	f.StringVar(&o.listen, "listen", "", "loopback address and port of the service, for example 127.0.0.1:8080")
	completeFlags(cmd)
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
	topology, err := build(o.stage, knobs)
	if err != nil {
		return err
	}
	if err := missingEngines([]sut.Topology{topology}); err != nil {
		return err
	}
	log := slog.New(slog.NewTextHandler(s.err, &slog.HandlerOptions{Level: slog.LevelInfo}))
	up, err := newLauncher(data, log, func(text string) { _, _ = fmt.Fprintln(s.err, text) })
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, up.Budgets.Close()) }()
	if up.Listen, err = o.address(); err != nil {
		return err
	}
	logs := o.logs
	if logs != "" {
		if logs, err = filepath.Abs(logs); err != nil {
			return err
		}
	}
	system, err := up.up(ctx, topology, logs)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, system.Down(context.WithoutCancel(ctx))) }()
	_, _ = fmt.Fprintf(s.out, "stage %s is up at %s (%v, hosts: %s)\n", topology.Stage,
		strings.Join(system.Endpoints(), " and "), system.BringUp().Round(time.Millisecond), up.Budgets.Describe())
	counts, _ := data.Counts()
	_, _ = fmt.Fprintf(s.out, "users: %s to %s, password: %s\n",
		sut.SeedLogin(1), sut.SeedLogin(counts.Users), sut.SeedPassword)
	text := outputFlags{format: string(table.FormatText)}
	if err := text.print(s, statusTable(system.Status())); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(s.out, "logs: %s\nto stop the system: Ctrl-C, or stagebench down\n", system.LogDir())
	id := fmt.Sprintf("%s-%d", topology.Stage, os.Getpid())
	info := control.Info{ID: id, Stage: topology.Stage, Data: data, LogDir: system.LogDir()}
	return control.Serve(ctx, control.DefaultDir(), info, system)
}

// address returns the address of --listen.
func (o upOptions) address() (a netip.AddrPort, err error) {
	if o.listen == "" {
		return a, nil
	}
	text := o.listen
	if strings.HasPrefix(text, ":") {
		text = "127.0.0.1" + text
	}
	if a, err = netip.ParseAddrPort(text); err != nil || !a.Addr().IsLoopback() || a.Port() == 0 {
		return a, exit.Usagef("--listen %s\nwant a loopback address and a port, for example 127.0.0.1:8080", o.listen)
	}
	return a, nil
}
