package main

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/cell"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/control"
)

func recoverCommand(s streams) *cobra.Command {
	var id string
	var o outputFlags
	var replay bool
	cmd := &cobra.Command{
		Use:   "recover",
		Short: "Show the acknowledged writes that the system lost, and replay them",
		Long: `Shows each failover with the durations of its steps, and each change that an old copy
of the database had and that the promoted replica never received. Every change is
shown once. A loss of unknown size is shown with its reason, such as the death of a
write-back cache, whose memory had the only copy of writes.

For a multi-primary database, it shows how many changes each primary discarded,
because a later change to the same row won, and what they had added to numbers.

With --replay, the lost changes are applied to the current primary, in order of
epochs and only once: comments, photos and follows are added with their own ids,
likes are added again, and a title is set unless a newer one was set since. Changes
that cannot be replayed are listed with the reason. The embedded database knows every
lost change. The native one knows added rows, and only the last state of changed rows.`,
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
			if len(recovery.Failovers)+len(recovery.Lost)+len(recovery.Discarded) == 0 {
				_, _ = fmt.Fprintln(s.err, "no database failover has happened, so no change was lost")
			}
			return o.print(s, recoveryTables(recovery)...)
		},
	}
	cmd.Flags().BoolVar(&replay, "replay", false, "apply the lost changes to the primary, where possible")
	systemFlag(cmd, &id)
	o.flags(cmd)
	return cmd
}

func recoveryTables(r targets.Recovery) []table.Table {
	all := []table.Table{table.Failovers(cell.Failovers(r.Failovers)), lostTable(r.Lost)}
	if len(r.Discarded) > 0 {
		all = append(all, discardedTable(r.Discarded))
	}
	if r.Replayed != nil {
		all = append(all, replayedTable(r.Replayed))
	}
	return all
}

func lostTable(losses []sut.Lost) table.Table {
	lost := table.Table{Title: "Lost writes", Columns: []table.Column{
		{Name: "node"},
		{Name: "epoch", Align: table.Right},
		{Name: "table"},
		{Name: "change"},
		{Name: "key"},
		{Name: "committed"},
	}}
	for _, l := range losses {
		switch {
		case l.Unknown:
			lost.Notes = append(lost.Notes, fmt.Sprintf("%s: an unknown number of writes may be lost: %s", l.Node, l.Partial))
		default:
			text := fmt.Sprintf("%s: %d commits with %d changed rows of epoch %d were lost", l.Node, l.Commits, len(l.Changes),
				l.Epoch)
			if l.Replayed {
				text += "; they were already replayed"
			}
			if l.Partial != "" {
				text += "; " + l.Partial
			}
			lost.Notes = append(lost.Notes, text)
		}
		for _, c := range l.Changes {
			at := ""
			if c.AtUS > 0 {
				at = time.UnixMicro(c.AtUS).UTC().Format("2006-01-02T15:04:05.000000Z")
			}
			row := append(texts(l.Node), table.Count(l.Epoch))
			lost.Rows = append(lost.Rows, append(row, texts(c.Table, string(c.Op), c.Key, at)...))
		}
	}
	return lost
}

func discardedTable(nodes []targets.Discarded) table.Table {
	discarded := table.Table{
		Title: "Discarded by the last writer",
		Columns: []table.Column{
			{Name: "node"},
			{Name: "column"},
			{Name: "lost difference", Key: "difference", Align: table.Right},
		},
		Legend: []string{
			"lost difference: what discarded updates had added to a number",
			"all primaries count the same when they have all changes: do not add their counts",
		},
	}
	for _, n := range nodes {
		discarded.Notes = append(discarded.Notes, fmt.Sprintf("%s: %d conflicts: two primaries changed the same row "+
			"concurrently, and the later change won", n.Node, n.Conflicts))
		for _, column := range slices.Sorted(maps.Keys(n.Differences)) {
			discarded.Rows = append(discarded.Rows, append(texts(n.Node, column), table.Count(n.Differences[column])))
		}
	}
	return discarded
}

func replayedTable(all []targets.Replayed) table.Table {
	replayed := table.Table{Title: "Replayed", Columns: []table.Column{
		{Name: "node"},
		{Name: "epoch", Align: table.Right},
		{Name: "operation"},
		{Name: "times", Align: table.Right},
	}}
	for _, r := range all {
		for _, op := range slices.Sorted(maps.Keys(r.Done)) {
			row := append(texts(r.Node), table.Count(r.Epoch))
			replayed.Rows = append(replayed.Rows, append(row, append(texts(op), table.Count(int64(r.Done[op])))...))
		}
		if r.AlreadyPresent > 0 {
			replayed.Notes = append(replayed.Notes,
				fmt.Sprintf("%s, epoch %d: %d changes were already present", r.Node, r.Epoch, r.AlreadyPresent))
		}
		for _, refused := range r.Refused {
			replayed.Notes = append(replayed.Notes, fmt.Sprintf("%s, epoch %d: not replayed: %s", r.Node, r.Epoch, refused))
		}
	}
	if len(all) == 0 {
		replayed.Notes = append(replayed.Notes, "there was nothing to replay")
	}
	return replayed
}
