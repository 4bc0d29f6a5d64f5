package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/targets/control"
	"github.com/stagebench/stagebench/targets/logs"
)

// logsOptions are the flags of `stagebench logs`.
type logsOptions struct {
	system, dir, grep, format string
	since                     time.Duration
	query                     logs.Query
}

func logsCommand(s streams) *cobra.Command {
	var o logsOptions
	cmd := &cobra.Command{
		Use:   "logs",
		Short: "Show the logs of all nodes as one stream, ordered by time",
		Long: `Merges the logs of all nodes by time and shows the selected lines. The nodes are
those of the running system, or of a cell of a run. A request has the same id in
the logs of all tiers and in the X-Request-Id header of its response. Successful
requests are only logged with --set log.requests=all.`,
		Example: `  stagebench logs --level WARN
  stagebench logs --request 91452cc626864cfdb68ea328bea4263d
  stagebench logs --follow --node lb-1,web-2 --grep 'status.:50'
  stagebench logs --dir runs/latest/cells/lb/read-heavy/logs --format json`,
		RunE: func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), s) },
	}
	f := cmd.Flags()
	f.StringVar(&o.dir, "dir", "", "log directory; default: that of the system of \"stagebench up\"")
	f.StringSliceVar(&o.query.Nodes, "node", nil, "show only lines of these nodes")
	f.StringVar(&o.query.Level, "level", "", "show only lines of this level or above: DEBUG, INFO, WARN, ERROR")
	f.StringVar(&o.query.Request, "request", "", "show only lines of the request with this id")
	f.StringVar(&o.grep, "grep", "", "show only lines that match this regular expression")
	f.DurationVar(&o.since, "since", 0, "show only lines that are not older than this, for example 5m; 0 = all")
	f.BoolVar(&o.query.Follow, "follow", false, "keep showing new lines until Ctrl-C")
	f.StringVar(&o.format, "format", "table", "table (one readable line each) or json (one object per line)")
	systemFlag(cmd, &o.system)
	must(cmd.RegisterFlagCompletionFunc("node", completion(namesOf(&o.system, nodeNames))))
	return cmd
}

func (o logsOptions) run(ctx context.Context, s streams) error {
	var err error
	if o.grep != "" {
		if o.query.Matches, err = regexp.Compile(o.grep); err != nil {
			return exit.Usagef("--grep: %w\nwant a regular expression such as 'status.:50'", err)
		}
	}
	if o.since > 0 {
		o.query.Since = time.Now().Add(-o.since)
	}
	if o.format != "table" && o.format != "json" {
		return exit.Usagef("unknown format %q\nwant table or json", o.format)
	}
	o.query.Level = strings.ToUpper(o.query.Level)
	if err := o.query.Validate(); err != nil {
		return exit.Usage(err)
	}
	dir := o.dir
	if dir == "" {
		client, err := control.Dial(control.DefaultDir(), o.system)
		if err != nil {
			return exit.Usagef("no --dir given, and %w", err)
		}
		info, err := client.Info(ctx)
		if err != nil {
			return err
		}
		dir = info.LogDir
	}
	if _, err := os.Stat(filepath.Join(dir, "logs")); err == nil {
		dir = filepath.Join(dir, "logs") // --dir names a cell, not its logs
	}
	shown := 0
	err = logs.Stream(ctx, dir, o.query, func(r logs.Record) error {
		shown++
		return o.print(s.out, r)
	})
	if err == nil && shown == 0 {
		_, _ = fmt.Fprintf(s.err, "no line in %s was selected\n"+
			"use fewer of --node, --level, --request, --grep and --since\n", dir)
	}
	if errors.Is(err, context.Canceled) && o.query.Follow {
		return nil
	}
	return err
}

func (o logsOptions) print(w io.Writer, r logs.Record) error {
	if o.format == "json" {
		return json.NewEncoder(w).Encode(r)
	}
	_, err := fmt.Fprintln(w, r)
	return err
}
