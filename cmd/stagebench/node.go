package main

import (
	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/sut/node"
)

// nodeVerb is the hidden command that becomes a node of the system under test.
const nodeVerb = "node"

func nodeCommand(s streams) *cobra.Command {
	return &cobra.Command{
		Use:    nodeVerb,
		Short:  "Become a node: configuration on stdin, ready line on stdout, logs on stderr",
		Hidden: true,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return node.Run(cmd.Context(), s.in, s.out, s.err)
		},
	}
}
