// Package exit defines the exit statuses of the program, errors with a specific status,
// and the error report on stderr.
package exit

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// The exit statuses. The program uses no others.
const (
	Done       = 0 // success
	Failed     = 1 // the operation failed
	WrongUsage = 2 // wrong usage: nothing was done
	Invalid    = 3 // the measurement is invalid
	Missed     = 4 // the objective was missed

	Interrupted = 130 // by Ctrl-C, as a shell reports it: 128 plus the number of the signal
)

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

// Interruptedf returns an error with status Interrupted.
func Interruptedf(format string, args ...any) error {
	return statusError{Interrupted, fmt.Errorf(format, args...)}
}

// errInterrupted replaces the errors that a signal caused.
var errInterrupted = errors.New("interrupted")

// withoutCancelled replaces all context.Canceled errors by one errInterrupted and keeps
// the other errors.
func withoutCancelled(err error) error {
	if !errors.Is(err, context.Canceled) {
		return err
	}
	joined, ok := err.(interface{ Unwrap() []error })
	if !ok {
		return errInterrupted
	}
	kept := []error{errInterrupted}
	for _, e := range joined.Unwrap() {
		if !errors.Is(e, context.Canceled) {
			kept = append(kept, e)
		}
	}
	return errors.Join(kept...)
}

// Report writes the error to w and returns the exit status.
func Report(w io.Writer, err error) int {
	if err == nil {
		return Done
	}
	interrupted := errors.Is(err, context.Canceled)
	err = withoutCancelled(err)
	_, _ = fmt.Fprintf(w, "stagebench: %v\n", err) // a failed write cannot be reported anywhere
	var s statusError
	switch {
	case errors.As(err, &s):
		return s.status
	case interrupted:
		return Interrupted
	}
	return Failed
}
