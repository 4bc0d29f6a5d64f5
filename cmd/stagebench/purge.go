package main

import (
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/table"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/control"
)

func purgeCommand(s streams) *cobra.Command {
	var id string
	var p sut.Purge
	var o outputFlags
	cmd := &cobra.Command{
		Use:   "purge [PATH...]",
		Short: "Remove content from the edges of the running system",
		Long: `Removes content from all edges: all variants of a path, or everything that the origin
has marked with a group (the header Cache-Groups, RFC 9875). The photo service marks each
image of a photo with the group photo-ID.

After the command no edge answers with what it had before, also not with a response that
was on its way. An edge that is down starts without content.`,
		Example: "  stagebench purge '/img/17/thumb.jpg?v=1' /static/app.css\n  stagebench purge --group photo-17",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, paths []string) error {
			p.URLs = paths
			if len(p.URLs)+len(p.Groups) == 0 {
				return exit.Usagef("nothing to purge\nfor example: stagebench purge --group photo-17")
			}
			for _, path := range paths {
				if !strings.HasPrefix(path, "/") {
					return exit.Usagef("%q is not a path\nfor example: stagebench purge '/img/17/thumb.jpg?v=1'", path)
				}
			}
			client, err := control.Dial(control.DefaultDir(), id)
			if err != nil {
				return err
			}
			purged, err := client.Purge(cmd.Context(), p)
			if err != nil {
				return fmt.Errorf("purge: %w", err)
			}
			return o.print(s, purgedTable(purged))
		},
	}
	cmd.Flags().StringSliceVar(&p.Groups, "group", nil, "purge what the origin has marked with this group; repeatable")
	systemFlag(cmd, &id)
	o.flags(cmd)
	return cmd
}

func purgedTable(purged []targets.Purged) table.Table {
	t := table.Table{Title: "Purged", Columns: []table.Column{
		{Name: "edge", Key: "node", Row: true},
		{Name: "result"},
		{Name: "ms", Key: "took_ns", Align: table.Right},
	}}
	for _, p := range purged {
		result := "purged"
		if p.Down {
			result = "was down: starts without content"
		}
		t.Rows = append(t.Rows, append(texts(p.Node, result), table.Nanoseconds(p.TookNS)))
	}
	return t
}
