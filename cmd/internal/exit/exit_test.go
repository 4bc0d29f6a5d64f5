package exit_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/exit"
)

// The status after a signal is 128 plus its number, whichever error it causes.
func TestSignals(t *testing.T) {
	for _, signal := range []syscall.Signal{syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT} {
		ctx := exit.OnSignal(t.Context(), signal)
		if err := syscall.Kill(os.Getpid(), signal); err != nil {
			t.Fatal(err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Minute):
			t.Fatalf("%v did not end the context", signal)
		}
		for _, err := range []error{
			ctx.Err(), fmt.Errorf("start db-1: %w", context.Cause(ctx)), exit.Usage(context.Cause(ctx)),
			exit.Interruptedf("interrupted: so far"), errors.New("a child was killed"),
			errors.Join(context.Cause(ctx), errors.New("clean up")),
		} {
			var out strings.Builder
			if got := exit.Report(ctx, &out, err); got != 128+int(signal) {
				t.Errorf("%v, %v: status %d, want %d", signal, err, got, 128+int(signal))
			}
		}
	}
}

func TestStatuses(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		err  error
		want int
	}{
		{nil, exit.Done},
		{errors.New("x"), exit.Failed},
		{exit.Usagef("x"), exit.WrongUsage},
		{exit.Invalidf("x"), exit.Invalid},
		{fmt.Errorf("y: %w", exit.Missedf("x")), exit.Missed},
		{exit.Undecidedf("x"), exit.Undecided},
		{context.Canceled, exit.Interrupted},
	} {
		if got := exit.Report(t.Context(), io.Discard, test.err); got != test.want {
			t.Errorf("%v: status %d, want %d", test.err, got, test.want)
		}
	}
}
