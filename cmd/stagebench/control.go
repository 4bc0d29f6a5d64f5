package main

import (
	"context"
	"fmt"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/control"
)

// systemFlag says which running system a command acts on.
func systemFlag(cmd *cobra.Command, id *string) {
	cmd.Flags().StringVar(id, "system", "", "which system, when several are up; see: stagebench status")
}

func statusCommand(s streams) *cobra.Command {
	var id, format string
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the nodes of the system that is up",
		Example: "  stagebench status\n  stagebench status --format json",
		RunE: func(cmd *cobra.Command, _ []string) error {
			f, err := table.ParseFormat(format)
			if err != nil {
				return exit.Usage(err)
			}
			client, err := control.Dial(control.DefaultDir(), id)
			if err != nil {
				return err
			}
			nodes, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			return table.Render(s.out, statusTable(nodes), f)
		},
	}
	systemFlag(cmd, &id)
	formatFlag(cmd, &format)
	return cmd
}

func statusTable(nodes []targets.NodeStatus) table.Table {
	t := table.Table{Title: "Nodes", Columns: []table.Column{
		{Name: "node"},
		{Name: "host"},
		{Name: "role"},
		{Name: "engine"},
		{Name: "version"},
		{Name: "standing"},
		{Name: "state"},
		{Name: "address"},
		{Name: "pid", Align: table.Right},
		{Name: "restarts", Align: table.Right},
		{Name: "ready ms", Key: "ready_ns", Align: table.Right},
		{Name: "last death"},
	}}
	for _, n := range nodes {
		t.Rows = append(t.Rows, append(
			texts(n.Node, n.Host, string(n.Role), string(n.Engine), n.Version, string(n.Standing), string(n.State), n.Address),
			table.Count(int64(n.PID)), table.Count(int64(n.Restarts)), table.Nanoseconds(n.ReadyNS), table.Text(n.Cause)))
	}
	return t
}

func killCommand(s streams) *cobra.Command {
	return actCommand(s, "kill", "Kill a host or a node by SIGKILL; supervision brings it back", "killed",
		func(ctx context.Context, c *control.Client, name string) error { return c.Kill(ctx, name) })
}

func pauseCommand(s streams) *cobra.Command {
	return actCommand(s, "pause", "Stop a host or a node by SIGSTOP", "paused",
		func(ctx context.Context, c *control.Client, name string) error { return c.Pause(ctx, name) })
}

func resumeCommand(s streams) *cobra.Command {
	return actCommand(s, "resume", "Let a paused host or node go on", "resumed",
		func(ctx context.Context, c *control.Client, name string) error { return c.Resume(ctx, name) })
}

// actCommand is a command that does one thing to one host or node.
func actCommand(s streams, verb, short, done string, act func(context.Context, *control.Client, string) error) *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   verb + " HOST|NODE",
		Short: short,
		Long: short + `.

Of a database with replicas, "primary" and "replica" name the host of the one that
is the primary at this moment, and of the first replica that serves.`,
		Example: fmt.Sprintf("  stagebench %s web-2", verb),
		Args:    oneArg("a host or a node as `stagebench status` names them"),
		RunE: func(cmd *cobra.Command, args []string) error {
			client, err := control.Dial(control.DefaultDir(), id)
			if err != nil {
				return err
			}
			if err := act(cmd.Context(), client, args[0]); err != nil {
				return err
			}
			_, err = fmt.Fprintf(s.out, "%s %s\n", done, args[0])
			return err
		},
	}
	systemFlag(cmd, &id)
	return cmd
}

func scaleCommand(s streams) *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   "scale web HOSTS",
		Short: "Change the number of web hosts while the system serves; no request has to fail for it",
		Long: `Starts more web hosts and has the balancers use them, or has the balancers leave
the last ones out, waits until these have finished what they had, and stops them.
Sessions that live in the memory of a web host go with it.`,
		Example: "  stagebench scale web 4\n  stagebench scale web 2",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return exit.Usagef("%s wants a tier and a number of hosts\nfor example: stagebench scale web 4", cmd.CommandPath())
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			hosts, err := strconv.Atoi(args[1])
			if err != nil {
				return exit.Usagef("%q is no number of hosts\nfor example: stagebench scale web 4", args[1])
			}
			client, err := control.Dial(control.DefaultDir(), id)
			if err != nil {
				return err
			}
			begin := time.Now()
			if err := client.Scale(cmd.Context(), sut.Role(args[0]), hosts); err != nil {
				return err
			}
			_, err = fmt.Fprintf(s.out, "%s has %d hosts after %v\n", args[0], hosts, time.Since(begin).Round(time.Millisecond))
			return err
		},
	}
	systemFlag(cmd, &id)
	return cmd
}

func downCommand(s streams) *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:     "down",
		Short:   "Take down the system that is up, and wait until it is gone",
		Example: "  stagebench down",
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := control.Dial(control.DefaultDir(), id)
			if err != nil {
				return err
			}
			begin := time.Now()
			if err := client.Down(cmd.Context()); err != nil {
				return err
			}
			_, err = fmt.Fprintf(s.out, "down after %v\n", time.Since(begin).Round(time.Millisecond))
			return err
		},
	}
	systemFlag(cmd, &id)
	return cmd
}
