package main

import (
	"context"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/control"
)

func setCommand(s streams) *cobra.Command {
	var id string
	var names []string
	for _, k := range ladder.Catalogue() {
		if k.Live() {
			names = append(names, k.Name+"=")
		}
	}
	cmd := &cobra.Command{
		Use:   "set KNOB=VALUE",
		Short: "Change a knob of the running system while it serves requests",
		Long: `Changes a knob of the running system. Most knobs decide how a system starts, and cannot
change later. These can: ` + strings.ReplaceAll(strings.Join(names, ", "), "=", "") + `.

session.store=resp or sql moves all sessions out of the memory of the web hosts: new
logins go to the store, the other sessions are copied with their remaining life, and
then balancers do not keep users on a host any more. No user is logged out.

If the change fails before the first login goes to the store, it is undone. After that
it stays: give the same command again to complete it.`,
		Example:   "  stagebench set session.store=resp",
		ValidArgs: names,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 1 || !strings.Contains(args[0], "=") {
				return exit.Usagef("%s wants KNOB=VALUE\nfor example: stagebench set session.store=resp", cmd.CommandPath())
			}
			if _, err := ladder.ParseKnobs(args); err != nil {
				return exit.Usagef("%w", err)
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := control.Dial(control.DefaultDir(), id)
			if err != nil {
				return err
			}
			knob, value, _ := strings.Cut(args[0], "=")
			return set(cmd.Context(), s.out, client, knob, value)
		},
	}
	systemFlag(cmd, &id)
	return cmd
}

// setter is a system whose knobs can change.
type setter interface {
	Set(ctx context.Context, knob, value string) (targets.Changed, error)
}

// set changes a knob, and prints how many sessions moved.
func set(ctx context.Context, out io.Writer, system setter, knob, value string) error {
	changed, err := system.Set(ctx, knob, value)
	if err != nil {
		return err
	}
	moved := "an unknown number of"
	if changed.Moved != nil {
		moved = table.Count(*changed.Moved).Text
	}
	_, err = fmt.Fprintf(out, "%s is %s after %v: %s sessions moved\n", knob, value,
		time.Duration(changed.TookNS).Round(time.Millisecond), moved)
	return err
}
