package main

import (
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
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
			client, err := control.Dial(control.DefaultDir(), id)
			if err != nil {
				return err
			}
			nodes, err := client.Status(cmd.Context())
			if err != nil {
				return err
			}
			return table.Render(s.out, statusTable(nodes), table.Format(format))
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
		{Name: "replication_role"},
		{Name: "lag ms", Key: "lag_ns", Align: table.Right},
		{Name: "state"},
		{Name: "address"},
		{Name: "pid", Align: table.Right},
		{Name: "restarts", Align: table.Right},
		{Name: "ready ms", Key: "ready_ns", Align: table.Right},
		{Name: "last death"},
	}}
	for _, n := range nodes {
		lag := table.Blank()
		if n.ReplicationRole == targets.Replica && n.LagNS >= 0 {
			lag = table.Nanoseconds(n.LagNS)
		}
		if n.Conflicts > 0 {
			t.Notes = append(t.Notes, fmt.Sprintf("%s: %d conflicts with other primaries; the last writer of a row won", n.Node, n.Conflicts))
		}
		t.Rows = append(t.Rows, append(append(append(
			texts(n.Node, n.Host, string(n.Role), string(n.Engine), n.Version, string(n.ReplicationRole)), lag), texts(string(n.State), n.Address)...),
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
	var watch time.Duration
	var names []string
	long := "Changes the number of hosts of a tier while the system serves. What can be scaled, and the\n" +
		"knob that holds the number:\n\n"
	for _, t := range ladder.Tiers() {
		if t.Scaling != nil {
			names = append(names, t.Scaling.Name)
			long += fmt.Sprintf("  %-8s %s\n", t.Scaling.Name, t.Scaling.Knob)
		}
	}
	cmd := &cobra.Command{
		Use:   "scale " + strings.Join(names, "|") + " HOSTS",
		Short: "Change the number of hosts of a tier while the system serves; no request has to fail for it",
		Long: long + `
New hosts are started and then used; a replica is used once it has caught up. The
last hosts get no new requests, finish what they have, and are stopped. When
something fails, or you interrupt it, the system becomes what it was.

Sessions in the memory of a web host are lost with it. A key of the cache that moves
is dropped by its old host, and is loaded again when somebody reads it. A photo
that moves is copied to its new host first. The primary of the database stays.`,
		Example:   "  stagebench scale web 4\n  stagebench scale cache 3 --watch 10s\n  stagebench scale replica 1",
		ValidArgs: names,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 || !slices.Contains(names, args[0]) {
				return exit.Usagef("%s wants one of %s, and a number of hosts\nfor example: stagebench scale web 4",
					cmd.CommandPath(), strings.Join(names, ", "))
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
			return scale(cmd.Context(), s.out, client, args[0], hosts, watch)
		},
	}
	cmd.Flags().DurationVar(&watch, "watch", 2*time.Second,
		"of the cache: how long its hit ratio is measured before the change, and after it; 0s = not at all")
	systemFlag(cmd, &id)
	return cmd
}

// scaler is a system whose tiers can be scaled.
type scaler interface {
	Status(ctx context.Context) ([]targets.NodeStatus, error)
	Scale(ctx context.Context, tier string, hosts int) (targets.Scaled, error)
}

// scale changes the number of hosts of a tier, and says what that did to its keys.
func scale(ctx context.Context, out io.Writer, system scaler, tier string, hosts int, watch time.Duration) error {
	if tier != string(sut.Cache) {
		watch = 0
	}
	before, err := watchCache(ctx, system, watch)
	if err != nil {
		return err
	}
	scaled, err := system.Scale(ctx, tier, hosts)
	if err != nil {
		return err
	}
	text := fmt.Sprintf("%s has %d hosts after %v", tier, hosts, time.Duration(scaled.TookNS).Round(time.Millisecond))
	if hosts == 1 {
		text = strings.Replace(text, "hosts", "host", 1)
	}
	count := func(n *int64) string {
		if n == nil {
			return "an unknown number"
		}
		return table.Count(*n).Text
	}
	for _, t := range ladder.Tiers() {
		switch s := t.Scaling; {
		case s == nil || s.Name != tier || !s.Members:
		case s.Held == "":
			text += fmt.Sprintf(": %s %s moved to other hosts", count(scaled.Moved), s.Keys)
		default:
			text += fmt.Sprintf(": %s of %s %s moved to other hosts", count(scaled.Moved), count(scaled.Held), s.Keys)
		}
	}
	if _, err := fmt.Fprintln(out, text); err != nil || watch <= 0 {
		return err
	}
	after, err := watchCache(ctx, system, watch)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "hit ratio of the web hosts: %s in the %v before, %s in the %v after\n", before, watch, after, watch)
	return err
}

// watchCache returns the hit ratio of the web hosts over a time, if that is more than 0.
func watchCache(ctx context.Context, system scaler, d time.Duration) (ratio string, err error) {
	if d <= 0 {
		return "", nil
	}
	nodes, err := system.Status(ctx)
	if err != nil {
		return "", err
	}
	reads, err := cell.WatchCache(ctx, nodes, d)
	switch {
	case err != nil:
		return "", err
	case reads == nil:
		return "not known", nil
	case reads.Hits+reads.Misses == 0:
		return "no reads", nil
	}
	return strconv.FormatFloat(reads.HitRatio(), 'f', 2, 64), nil
}

func recoverCommand(s streams) *cobra.Command {
	var id, format string
	var replay bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Show what the failovers of the database have cost, and make good what can be",
		Long: `Shows each failover with the time of its steps, and what the old primary had
acknowledged or begun that the replica which took its place never got.

With --replay that is done once more at the primary: comments, photos and follows
are added with their own ids, likes are added again, titles are set where nobody
has set another one since. What cannot be done is listed with the reason. The
embedded database knows every change; of the native one's the rows that were
added are known, and of a row that was changed only its last state.`,
		Example: "  stagebench recover\n  stagebench recover --replay\n  stagebench recover --format json",
		Args:    noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			client, err := control.Dial(control.DefaultDir(), id)
			if err != nil {
				return err
			}
			recovery, err := client.Recover(cmd.Context(), replay)
			if err != nil {
				return err
			}
			return table.RenderAll(s.out, recoveryTables(recovery), table.Format(format))
		},
	}
	cmd.Flags().BoolVar(&replay, "replay", false, "do what was lost once more at the primary, where it can be done")
	systemFlag(cmd, &id)
	formatFlag(cmd, &format)
	return cmd
}

func recoveryTables(r targets.Recovery) []table.Table {
	failovers := table.Table{Title: "Failovers", Columns: []table.Column{
		{Name: "epoch", Align: table.Right},
		{Name: "from"},
		{Name: "to"},
		{Name: "detect ms", Key: "detect_ns", Align: table.Right},
		{Name: "fence ms", Key: "fence_ns", Align: table.Right},
		{Name: "promote ms", Key: "promote_ns", Align: table.Right},
		{Name: "switch ms", Key: "switch_ns", Align: table.Right},
		{Name: "replaced ms", Key: "replace_ns", Align: table.Right},
	}, Legend: []string{
		"detect: from the old primary's last answer until it was taken for dead; fence: until it was dead for certain; promote: until the new one took writes;",
		"switch: until all web hosts sent it theirs; replaced: from the last answer until the old one was a replica that had caught up",
	}}
	for _, f := range r.Failovers {
		replaced := table.Blank()
		if f.ReplaceNS > 0 {
			replaced = table.Nanoseconds(f.ReplaceNS)
		}
		failovers.Rows = append(failovers.Rows, append(append([]table.Cell{table.Count(f.Epoch)}, texts(f.From, f.To)...),
			table.Nanoseconds(f.DetectNS), table.Nanoseconds(f.FenceNS), table.Nanoseconds(f.PromoteNS), table.Nanoseconds(f.SwitchNS), replaced))
	}
	lost := table.Table{Title: "Lost in failovers", Columns: []table.Column{
		{Name: "node"},
		{Name: "epoch", Align: table.Right},
		{Name: "table"},
		{Name: "change"},
		{Name: "key"},
		{Name: "committed"},
	}}
	for _, l := range r.Lost {
		if l.Epoch > 0 {
			lost.Notes = append(lost.Notes, fmt.Sprintf("%s kept its copy of epoch %d: %d commits with %d changed rows were lost", l.Node, l.Epoch, l.Commits, len(l.Changes)))
		}
		if l.Replayed {
			lost.Notes = append(lost.Notes, fmt.Sprintf("%s: it has been done once more already", l.Node))
		}
		if l.Partial != "" {
			lost.Notes = append(lost.Notes, l.Node+": "+l.Partial)
		}
		for _, c := range l.Changes {
			at := ""
			if c.AtUS > 0 {
				at = time.UnixMicro(c.AtUS).UTC().Format("2006-01-02T15:04:05.000000Z")
			}
			lost.Rows = append(lost.Rows, append(append(texts(l.Node), table.Count(l.Epoch)), texts(c.Table, string(c.Op), c.Key, at)...))
		}
	}
	all := []table.Table{failovers, lost}
	if r.Replayed == nil {
		return all
	}
	replayed := table.Table{Title: "Done once more", Columns: []table.Column{{Name: "node"}, {Name: "operation"}, {Name: "times", Align: table.Right}}}
	for _, name := range slices.Sorted(maps.Keys(r.Replayed)) {
		done := r.Replayed[name]
		for _, op := range slices.Sorted(maps.Keys(done.Done)) {
			replayed.Rows = append(replayed.Rows, append(texts(name, op), table.Count(int64(done.Done[op]))))
		}
		if done.There > 0 {
			replayed.Notes = append(replayed.Notes, fmt.Sprintf("%s: %d were in place already", name, done.There))
		}
		for _, refused := range done.Refused {
			replayed.Notes = append(replayed.Notes, name+": not done: "+refused)
		}
	}
	return append(all, replayed)
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
