// Command stagebench builds the scaling ladder of a photo service, sends load to
// each stage and measures capacity, latency and limits. See README.md.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/term"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/workloads/driver"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// The first signal stops the command cleanly, a second one kills it.
	context.AfterFunc(ctx, stop)
	terminal := term.IsTerminal(int(os.Stderr.Fd()))
	transport := driver.NewTransportLog(os.Stderr)
	err := run(ctx, streams{os.Args[1:], os.Stdin, os.Stdout, os.Stderr, terminal, widthOf(os.Stdout), transport})
	os.Exit(exit.Report(os.Stderr, err))
}
