package main

import (
	"slices"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/rundir"
)

func showCommand(s streams) *cobra.Command {
	var o outputFlags
	var stages, workloads []string
	cmd := &cobra.Command{
		Use:   "show RUN",
		Short: "Print a stored run again, also in the formats of other tools",
		Long: `Prints the tables of a run again, from its directory. With --format it writes a
format of another tool:

  gobench                   Go benchmark text for benchstat, one line for each visit
  github-benchmark-smaller  github-action-benchmark, tool customSmallerIsBetter
  github-benchmark-bigger   github-action-benchmark, tool customBiggerIsBetter
  bencher                   Bencher Metric Format
  junit                     JUnit XML: one test for each cell
  openmetrics               OpenMetrics text, also for the metrics reports of GitLab
  load-performance          summary of k6, for the load performance reports of GitLab
  github                    annotations, and a summary in the file $GITHUB_STEP_SUMMARY

Figures that are not valid are left out, except by gobench, which marks them with
"valid: no". If none is left, the exit status is 3.`,
		Example: `  stagebench show runs/latest
  stagebench show runs/latest --format junit > junit.xml
  stagebench show runs/latest --stage lb --workload read-heavy --format load-performance`,
		Args: oneArg("the directory of a run"),
		RunE: func(cmd *cobra.Command, args []string) error {
			run, err := interruptible(cmd.Context(), func() (results.Run, error) {
				run, _, err := rundir.Read(args[0])
				return run, err
			})
			if err != nil {
				return exit.Usage(err)
			}
			if run.Cells, err = chosen(run.Cells, stages, workloads); err != nil {
				return err
			}
			return o.run(s, run)
		},
	}
	cmd.Flags().StringSliceVar(&stages, "stage", nil, "only the cells of these stages")
	cmd.Flags().StringSliceVar(&workloads, "workload", nil, "only the cells of these workloads")
	o.runFlags(cmd)
	completeFlags(cmd)
	return cmd
}

// chosen returns the cells of the given stages and workloads; none given = all.
func chosen(cells []results.Cell, stages, workloads []string) ([]results.Cell, error) {
	for _, by := range []struct {
		flag   string
		values []string
		of     func(results.Cell) string
	}{
		{"stage", stages, func(c results.Cell) string { return c.Stage }},
		{"workload", workloads, func(c results.Cell) string { return c.Workload }},
	} {
		for _, value := range by.values {
			if !slices.ContainsFunc(cells, func(c results.Cell) bool { return by.of(c) == value }) {
				return nil, exit.Usagef("--%s %s: the run has no such cell\nsee its cells: stagebench show RUN", by.flag, value)
			}
		}
		if len(by.values) > 0 {
			cells = slices.DeleteFunc(slices.Clone(cells), func(c results.Cell) bool {
				return !slices.Contains(by.values, by.of(c))
			})
		}
	}
	return cells, nil
}
