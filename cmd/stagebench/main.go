// Command stagebench builds the scaling ladder of a photo service, sends load to
// each stage and measures capacity, latency and limits. See README.md.
package main

import (
	"context"
	"os"
	"syscall"

	"golang.org/x/term"

	"github.com/stagebench/stagebench/cmd/internal/exit"
	"github.com/stagebench/stagebench/workloads/driver"
)

func main() {
	// The first signal stops the command cleanly, a second one kills it. SIGQUIT is one of them: its default, a dump of
	// all stacks, cleans nothing up. The second one dumps them.
	ctx := exit.OnSignal(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	isTerminal := func(f *os.File) bool { return term.IsTerminal(int(f.Fd())) }
	err := run(ctx, streams{
		args: os.Args[1:], in: os.Stdin, out: os.Stdout, err: os.Stderr, terminal: isTerminal(os.Stderr),
		color: wantsColor(isTerminal(os.Stdout), os.Getenv), width: widthOf(os.Stdout),
		log: driver.NewTransportLog(os.Stderr),
	})
	os.Exit(exit.Report(ctx, os.Stderr, err))
}
