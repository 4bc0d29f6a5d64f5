// Command stagebench builds the scaling ladder of a photo service, drives it
// with honest load and shows what every stage buys; see README.md.
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
	// The first signal ends things in order; a second one ends them at once.
	context.AfterFunc(ctx, stop)
	terminal := term.IsTerminal(int(os.Stderr.Fd()))
	err := run(ctx, streams{args: os.Args[1:], in: os.Stdin, out: os.Stdout, err: os.Stderr, terminal: terminal})
	os.Exit(exit.Report(os.Stderr, err))
}
