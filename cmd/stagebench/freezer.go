package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"time"

	"github.com/spf13/cobra"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/workloads/driver/freezer"
)

func freezerCommand(s streams) *cobra.Command {
	var listen string
	f := &freezer.Freezer{}
	cmd := &cobra.Command{
		Use:   "freezer",
		Short: "Serve a page that freezes periodically, to check the figures of a load generator",
		Long: `Serves HTTP and answers nothing for --frozen in every --period. With the defaults
the 95th percentile of the response time is 250 ms and the 99th 450 ms, at any
rate. A load generator that reports less does not measure all of the delay.`,
		Example: `  stagebench freezer --listen 127.0.0.1:8099 &
  stagebench attack --target http://127.0.0.1:8099/ --rate 1000 --duration 10s \
      --connections 32 --schedule constant`,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if f.Frozen <= 0 || f.Period <= f.Frozen {
				return exit.Usagef("--frozen %v, --period %v\nwant --frozen more than 0, and --period longer than --frozen",
					f.Frozen, f.Period)
			}
			return serveFreezer(cmd.Context(), s, listen, f)
		},
	}
	cmd.Flags().StringVar(&listen, "listen", "127.0.0.1:0", "loopback address to serve on")
	cmd.Flags().DurationVar(&f.Frozen, "frozen", 500*time.Millisecond, "length of a freeze")
	cmd.Flags().DurationVar(&f.Period, "period", 5*time.Second, "time from one freeze to the next")
	return cmd
}

func serveFreezer(ctx context.Context, s streams, listen string, f *freezer.Freezer) error {
	address, err := net.ResolveTCPAddr("tcp", listen)
	if err != nil || !address.IP.IsLoopback() {
		return exit.Usagef("--listen %s\nwant a loopback address such as 127.0.0.1:8099", listen)
	}
	listener, err := net.Listen("tcp", listen)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(s.out, "http://%s/ freezes for %v in every %v\n", listener.Addr(), f.Frozen, f.Period)
	server := &http.Server{Handler: f, ReadHeaderTimeout: 10 * time.Second}
	context.AfterFunc(ctx, func() { _ = server.Close() })
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
