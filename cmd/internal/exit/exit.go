// Package exit defines the exit statuses of the program, the signals that end it, errors with a specific status,
// and the error report on stderr.
package exit

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// The exit statuses. The program uses no others.
const (
	Done       = 0 // success
	Failed     = 1 // the operation failed
	WrongUsage = 2 // wrong usage: nothing was done
	Invalid    = 3 // the measurement is invalid
	Missed     = 4 // the objective was missed, or there is a regression
	Undecided  = 5 // a gate was inconclusive

	// Interrupted is the status after Ctrl-C, as a shell reports it: 128 plus the number of the signal. Another
	// signal that ends a command gives its own number: 129 for SIGHUP, 131 for SIGQUIT, 143 for SIGTERM.
	Interrupted = signalled + int(syscall.SIGINT)

	signalled = 128
)

// interruption is the cause of a context that a signal ended. It counts as a context.Canceled.
type interruption struct{ signal syscall.Signal }

func (i interruption) Error() string {
	if i.signal == syscall.SIGINT {
		return "interrupted"
	}
	return "interrupted by " + unix.SignalName(i.signal)
}

func (i interruption) Is(target error) bool { return target == context.Canceled }

// OnSignal returns a context that ends at the first of these signals. A second one has its default effect: it ends the
// process at once.
func OnSignal(parent context.Context, signals ...os.Signal) context.Context {
	ctx, cancel := context.WithCancelCause(parent)
	received := make(chan os.Signal, 1)
	signal.Notify(received, signals...)
	go func() {
		first := <-received
		signal.Stop(received)
		cancel(interruption{first.(syscall.Signal)})
	}()
	return ctx
}

// statusError is an error with a specific exit status.
type statusError struct {
	status int
	err    error
}

func (e statusError) Error() string { return e.err.Error() }
func (e statusError) Unwrap() error { return e.err }

// Usagef returns an error with status WrongUsage. The second line of the text must say
// what to do.
func Usagef(format string, args ...any) error {
	return statusError{WrongUsage, fmt.Errorf(format, args...)}
}

// Usage gives an error about the user's input the status WrongUsage. Usage(nil) is nil.
func Usage(err error) error {
	if err == nil {
		return nil
	}
	return statusError{WrongUsage, err}
}

// Invalidf returns an error with status Invalid.
func Invalidf(format string, args ...any) error {
	return statusError{Invalid, fmt.Errorf(format, args...)}
}

// Missedf returns an error with status Missed.
func Missedf(format string, args ...any) error {
	return statusError{Missed, fmt.Errorf(format, args...)}
}

// Undecidedf returns an error with status Undecided.
func Undecidedf(format string, args ...any) error {
	return statusError{Undecided, fmt.Errorf(format, args...)}
}

// Interruptedf returns an error with status Interrupted.
func Interruptedf(format string, args ...any) error {
	return statusError{Interrupted, fmt.Errorf(format, args...)}
}

// withoutCancelled replaces all context.Canceled errors by one interruption and keeps
// the other errors.
func withoutCancelled(err error, by interruption) error {
	if !errors.Is(err, context.Canceled) {
		return err
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return by
	}
	kept := []error{by}
	for _, e := range joined.Unwrap() {
		if !errors.Is(e, context.Canceled) {
			kept = append(kept, e)
		}
	}
	return errors.Join(kept...)
}

// Report writes the error of a command to w and returns the exit status. ctx is that of the command: after a signal, an
// error without a status of its own is a result of the signal.
func Report(ctx context.Context, w io.Writer, err error) int {
	if err == nil {
		return Done
	}
	by, ended := errors.AsType[interruption](context.Cause(ctx))
	if !ended {
		by.signal = syscall.SIGINT
	}
	interrupted := errors.Is(err, context.Canceled)
	err = withoutCancelled(err, by)
	_, _ = fmt.Fprintf(w, "stagebench: %v\n", err) // a failed write cannot be reported anywhere
	s, given := errors.AsType[statusError](err)
	switch {
	case given && s.status != Interrupted && !interrupted:
		return s.status
	case given, interrupted, ended:
		return signalled + int(by.signal)
	}
	return Failed
}
