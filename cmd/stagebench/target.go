package main

import (
	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/targets/attach"
)

// targetVerb is the hidden command that runs the user's commands for a target.
const targetVerb = "target"

func targetCommand(s streams) *cobra.Command {
	return &cobra.Command{
		Use:    targetVerb,
		Short:  "Run the up and down commands of a target: commands on stdin, a line on stdout when started",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return attach.Serve(cmd.Context(), s.in, s.out, s.err)
		},
	}
}
