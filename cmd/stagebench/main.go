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
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	// The first signal stops the command cleanly, a second one kills it.
	context.AfterFunc(ctx, stop)
	terminal := term.IsTerminal(int(os.Stderr.Fd()))
	err := run(ctx, streams{args: os.Args[1:], in: os.Stdin, out: os.Stdout, err: os.Stderr, terminal: terminal})
	os.Exit(exit.Report(os.Stderr, err))
}
