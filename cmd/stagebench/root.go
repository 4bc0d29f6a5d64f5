package main

import (
	"context"
	"errors"
	"io"
	"log"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/results/rundir"
	"github.com/stagebench/stagebench/workloads/driver"
)

// streams are the arguments and the standard streams of the process.
type streams struct {
	args     []string
	in       io.Reader
	out, err io.Writer
	terminal bool // err is a terminal, so a progress bar can redraw itself
	color    bool // out shows colors
	width    int  // maximum length of a printed line; 0 = no limit
	log      *driver.TransportLog
}

// sendsLoad makes the standard log count what the transport reports there. Nodes keep their own log.
func (s streams) sendsLoad() {
	if s.log != nil {
		log.SetOutput(s.log)
	}
}

// run executes one command line.
func run(ctx context.Context, s streams) error { return rootCommand(s).ExecuteContext(ctx) }

// interruptible returns the result of read, or the cause of ctx as soon as ctx ends: a read of a pipe cannot be
// interrupted, so it goes on in the background. So read must start nothing and change nothing.
func interruptible[T any](ctx context.Context, read func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	done := make(chan result, 1)
	go func() {
		value, err := read()
		done <- result{value, err}
	}()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		var none T
		return none, context.Cause(ctx)
	}
}

// rootCommand returns the command with all its subcommands.
func rootCommand(s streams) *cobra.Command {
	root := &cobra.Command{
		Use:   "stagebench",
		Short: "Build a photo service stage by stage, send load to it, and see what each stage adds",
		Long: `Stagebench runs a photo-sharing service on this machine, stage by stage along
the classic scaling ladder. It sends open-loop load, measures every response from
the intended time of its request, and shows the capacity and latency of each stage.

Exit status: 0 success; 1 failure; 2 wrong usage; 3 the measurement is invalid;
4 the objective was missed, nothing succeeded, a gate found a regression, or a
figure of the history is worse; 5 a gate was inconclusive; 130 interrupted by
Ctrl-C, or 128 plus the number of another signal.`,
		Version: rundir.Version(),
		Example: `  stagebench run                       # the ladder: every stage, two workloads
  stagebench run --quick               # the same from short steps, with coarse results
  stagebench up --stage lb             # start a system and keep it running
  stagebench attack http://127.0.0.1:8080/ --rate 500 --duration 30s
  stagebench doctor                    # check what this machine supports`,
		SilenceErrors: true,
		SilenceUsage:  true,
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				var names []string
				for _, c := range cmd.Commands() {
					names = append(names, c.Name())
				}
				return exit.Usagef("unknown command %q%s\nsee: stagebench --help",
					args[0], didYouMean("", args[0], names))
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		PersistentPreRunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Hidden { // a node, or the completion of a shell
				return nil
			}
			_, err := interruptible(cmd.Context(), sweep)
			return err
		},
	}
	root.SetArgs(s.args)
	root.SetIn(s.in)
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetUsageTemplate(strings.ReplaceAll(root.UsageTemplate(), "Flags.FlagUsages", "Flags.FlagUsagesWrapped 100"))
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		var unknown *pflag.NotExistError
		meant := ""
		if errors.As(err, &unknown) {
			var names []string
			cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
			meant = didYouMean("--", unknown.GetSpecifiedName(), names)
		}
		return exit.Usagef("%w%s\nsee: %s --help", err, meant, cmd.CommandPath())
	})
	for _, command := range []*cobra.Command{
		runCommand(s), scorecardCommand(s), sizingCommand(s), upCommand(s), statusCommand(s), killCommand(s), pauseCommand(s),
		resumeCommand(s), scaleCommand(s), setCommand(s), purgeCommand(s), logsCommand(s), recoverCommand(s), downCommand(s),
		attackCommand(s), capacityCommand(s), showCommand(s), compareCommand(s), gateCommand(s), historyCommand(s),
		matrixCommand(s), listCommand(s), doctorCommand(s), nodeCommand(s), freezerCommand(s), targetCommand(s),
	} {
		if command.Args == nil {
			command.Args = noArgs
		}
		root.AddCommand(command)
	}
	return root
}

func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return exit.Usagef("%s takes no argument, but got %q\nsee: %s --help",
			cmd.CommandPath(), args[0], cmd.CommandPath())
	}
	return nil
}

// oneArg requires exactly one argument. The error names it.
func oneArg(what string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) != 1 {
			return exit.Usagef("%s wants one argument, %s, but got %d\nsee: %s --help",
				cmd.CommandPath(), what, len(args), cmd.CommandPath())
		}
		return nil
	}
}

// didYouMean returns ": did you mean --rate?" for the name that is most like a typed one; "" if none is.
func didYouMean(prefix, typed string, names []string) string {
	known := &cobra.Command{SuggestionsMinimumDistance: 2} // its Levenshtein distance is that of commands
	for _, name := range names {
		known.AddCommand(&cobra.Command{Use: name, Run: func(*cobra.Command, []string) {}})
	}
	if like := known.SuggestionsFor(typed); len(like) > 0 {
		return ": did you mean " + prefix + like[0] + "?"
	}
	return ""
}
