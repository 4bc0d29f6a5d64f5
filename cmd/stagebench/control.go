package main

import (
	"context"
	"fmt"
	"io"
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

// systemFlag adds the flag that selects the running system.
func systemFlag(cmd *cobra.Command, id *string) {
	cmd.Flags().StringVar(id, "system", "", "id of the system, if more than one is running")
	must(cmd.RegisterFlagCompletionFunc("system", completion(func(context.Context) []string {
		ids, _ := control.List(control.DefaultDir()) // without a list, nothing is completed
		return ids
	})))
}

// completion returns a function that completes names which are known only while the program runs.
func completion(names func(context.Context) []string) cobra.CompletionFunc {
	return func(cmd *cobra.Command, _ []string, _ string) ([]string, cobra.ShellCompDirective) {
		return names(cmd.Context()), cobra.ShellCompDirectiveNoFileComp
	}
}

// namesOf returns a function that lists names in the running system, for completion.
func namesOf(id *string, of func([]targets.NodeStatus) []string) func(context.Context) []string {
	return func(ctx context.Context) []string {
		client, err := control.Dial(control.DefaultDir(), *id)
		if err != nil {
			return nil
		}
		nodes, err := client.Status(ctx)
		if err != nil {
			return nil
		}
		names := of(nodes)
		slices.Sort(names)
		return slices.Compact(names)
	}
}

// nodeNames lists the names of nodes.
func nodeNames(nodes []targets.NodeStatus) (names []string) {
	for _, n := range nodes {
		names = append(names, n.Node)
	}
	return names
}

// faultNames lists what can be killed, paused and resumed: nodes, hosts, and with replicas the databases by their role.
func faultNames(nodes []targets.NodeStatus) []string {
	names, databases := nodeNames(nodes), 0
	for _, n := range nodes {
		names = append(names, n.Host)
		if n.Role == sut.DB {
			databases++
		}
		if n.ReplicationRole != "" && n.Shard > 0 {
			names = append(names, n.ReplicationRole.InShard(n.Shard))
		}
	}
	if databases > 1 {
		names = append(names, "primary", "replica")
	}
	return names
}

func statusCommand(s streams) *cobra.Command {
	var id string
	var o outputFlags
	cmd := &cobra.Command{
		Use:     "status",
		Short:   "Show the nodes of the running system",
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
			events, err := client.Events(cmd.Context())
			if err != nil {
				return err
			}
			t := statusTable(nodes)
			t.Legend = append(t.Legend, lastDecision(events)...)
			return o.print(s, t)
		},
	}
	systemFlag(cmd, &id)
	o.flags(cmd)
	return cmd
}

// lastDecision says what the autoscaler decided last and when, nothing if there is none.
func lastDecision(events []targets.Event) []string {
	for _, e := range slices.Backward(events) {
		if e.Scaling != nil {
			return []string{"web hosts are scaled automatically; since " + time.Unix(0, e.UnixNS).Format(time.TimeOnly) + ": " +
				e.Text}
		}
	}
	return nil
}

func statusTable(nodes []targets.NodeStatus) table.Table {
	const starts = "Starts"
	t := table.Table{Title: "Nodes", Columns: []table.Column{
		{Name: "node", Row: true},
		{Name: "host"},
		{Name: "role"},
		{Name: "engine"},
		{Name: "version"},
		{Name: "replication\nrole", Key: "replication_role"},
		{Name: "lag ms", Key: "lag_ns", Align: table.Right},
		{Name: "state"},
		{Name: "address"},
		{Name: "pid", Align: table.Right},
		{Name: "restarts", Align: table.Right, Part: starts},
		{Name: "ready ms", Key: "ready_ns", Align: table.Right, Part: starts},
		{Name: "last death", Part: starts},
	}, PartLegend: map[string][]string{starts: {"ready: from the start of the process until it serves"}}}
	for _, n := range nodes {
		lag := table.Blank()
		if n.ReplicationRole == targets.Replica && n.LagNS >= 0 {
			lag = table.Nanoseconds(n.LagNS)
		}
		if n.Conflicts > 0 {
			t.Notes = append(t.Notes, fmt.Sprintf("%s: %d conflicts with other primaries; the last write to a row won",
				n.Node, n.Conflicts))
		}
		replicationRole := string(n.ReplicationRole)
		if replicationRole != "" && n.Shard > 0 {
			replicationRole = n.ReplicationRole.InShard(n.Shard)
		}
		row := append(texts(n.Node, n.Host, string(n.Role), string(n.Engine), n.Version, replicationRole), lag)
		row = append(row, texts(string(n.State), n.Address)...)
		t.Rows = append(t.Rows, append(row, table.ID(int64(n.PID)), table.Count(int64(n.Restarts)),
			table.Nanoseconds(n.ReadyNS), table.Text(n.Cause)))
	}
	return t
}

func killCommand(s streams) *cobra.Command {
	return actCommand(s, "kill", "Kill a host or a node with SIGKILL; it is restarted automatically", "killed",
		func(ctx context.Context, c *control.Client, name string) error { return c.Kill(ctx, name) })
}

func pauseCommand(s streams) *cobra.Command {
	return actCommand(s, "pause", "Pause a host or a node with SIGSTOP", "paused",
		func(ctx context.Context, c *control.Client, name string) error { return c.Pause(ctx, name) })
}

func resumeCommand(s streams) *cobra.Command {
	return actCommand(s, "resume", "Resume a paused host or node", "resumed",
		func(ctx context.Context, c *control.Client, name string) error { return c.Resume(ctx, name) })
}

// actCommand returns a command that applies act to one host or node.
func actCommand(
	s streams, verb, short, done string, act func(context.Context, *control.Client, string) error,
) *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:   verb + " HOST|NODE",
		Short: short,
		Long: short + `.

For a database with replicas, "primary" is the host of the current primary, and
"replica" is the host of the first replica that serves. With shards, "primary" is
the first primary that serves, "primary-2" that of shard 2, "replica-2" a replica
of shard 2.`,
		Example: fmt.Sprintf("  stagebench %s web-2", verb),
		Args:    oneArg("a host or a node of \"stagebench status\""),

		ValidArgsFunction: completion(namesOf(&id, faultNames)),
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
	names, knobs := scalings()
	cmd := &cobra.Command{
		Use:   "scale " + strings.Join(names, "|") + " HOSTS",
		Short: "Change the number of hosts of a tier while the system serves requests",
		Long: "Changes the number of hosts of a tier while the system serves.\n" + knobs + `
No request needs to fail. New hosts are used when they are ready, and a replica when
it has caught up. To remove hosts, the last ones are drained: they get no new
requests, finish the current ones, and are stopped. If a step fails, or you interrupt
the command, the change is undone.

Sessions in the memory of a removed web host are lost. A cache key that moves is
dropped by its old host and loaded again at the next read. A photo that moves is
first copied to its new host. The primary of the database is never removed.`,
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
				return exit.Usagef("%q is not a number of hosts\nfor example: stagebench scale web 4", args[1])
			}
			client, err := control.Dial(control.DefaultDir(), id)
			if err != nil {
				return err
			}
			return scale(cmd.Context(), s.out, client, args[0], hosts, watch)
		},
	}
	cmd.Flags().DurationVar(&watch, "watch", 2*time.Second,
		"for the cache: measure its hit ratio for this time before and after the change; 0s = do not measure")
	systemFlag(cmd, &id)
	return cmd
}

// scalings returns the names of the tiers that can be scaled, and for people a list of them with their knobs.
func scalings() (names []string, text string) {
	text = "The tiers that can be\nscaled, and their knobs:\n\n"
	for _, t := range ladder.Tiers() {
		for _, s := range t.Scaling {
			names = append(names, s.Name)
			text += fmt.Sprintf("  %-8s %s\n", s.Name, s.Knob)
		}
	}
	return names, text
}

// scaler is a system whose tiers can be scaled.
type scaler interface {
	Status(ctx context.Context) ([]targets.NodeStatus, error)
	Scale(ctx context.Context, tier string, hosts int) (targets.Scaled, error)
}

// scale changes the number of hosts of a tier, and prints how many keys moved.
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
	subject, unit := tier, "host"
	if tier == ladder.ScaleShards {
		subject, unit = "the database", "shard"
	}
	text := fmt.Sprintf("%s has %d %ss after %v", subject, hosts, unit,
		time.Duration(scaled.TookNS).Round(time.Millisecond))
	if hosts == 1 {
		text = strings.Replace(text, unit+"s", unit, 1)
	}
	count := func(n *int64) string {
		if n == nil {
			return "an unknown number"
		}
		return table.Count(*n).Text
	}
	for _, t := range ladder.Tiers() {
		for _, s := range t.Scaling {
			switch {
			case s.Name != tier || s.Keys == "":
			case s.Held == "" && scaled.Held == nil:
				text += fmt.Sprintf(": %s %s moved to other %ss", count(scaled.Moved), s.Keys, unit)
			default:
				text += fmt.Sprintf(": %s of %s %s moved to other %ss", count(scaled.Moved), count(scaled.Held), s.Keys, unit)
			}
		}
	}
	if r := scaled.Resharded; r != nil {
		text += resharded(*r)
	}
	if _, err := fmt.Fprintln(out, text); err != nil || watch <= 0 {
		return err
	}
	after, err := watchCache(ctx, system, watch)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "hit ratio of the web hosts: %s in the %v before, %s in the %v after\n",
		before, watch, after, watch)
	return err
}

// resharded says what moved between shards.
func resharded(r targets.Resharded) string {
	text := fmt.Sprintf(": %s buckets of users moved", table.Count(int64(r.Buckets)).Text)
	if r.Least > 0 {
		text += fmt.Sprintf(", %.2f times the fewest possible", float64(r.Buckets)/float64(r.Least))
	}
	return text + fmt.Sprintf(", with %s rows\nwrites of a bucket waited for its move: median %v, longest %v",
		table.Count(r.Rows).Text, rounded(r.PauseP50NS), rounded(r.PauseMaxNS))
}

func rounded(ns int64) time.Duration { return time.Duration(ns).Round(100 * time.Microsecond) }

// watchCache measures the hit ratio of the web hosts for a time. It returns "" if d is 0.
func watchCache(ctx context.Context, system scaler, d time.Duration) (ratio string, err error) {
	if d <= 0 {
		return "", nil
	}
	nodes, err := system.Status(ctx)
	if err != nil {
		return "", err
	}
	reads, err := cell.CountCacheReads(ctx, nodes, d)
	switch {
	case err != nil:
		return "", err
	case reads == nil:
		return "unknown", nil
	case reads.Hits+reads.Misses == 0:
		return "no reads", nil
	}
	return strconv.FormatFloat(reads.HitRatio(), 'f', 2, 64), nil
}

func downCommand(s streams) *cobra.Command {
	var id string
	cmd := &cobra.Command{
		Use:     "down",
		Short:   "Stop the running system, and wait until all its processes have ended",
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
