// Package exit is how the program ends: the statuses, the errors that have one
// of their own, and the report of an error to people.
package exit

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// The exit statuses, the only ones there are.
const (
	Done       = 0 // what was asked for was done
	Failed     = 1 // it failed
	WrongUsage = 2 // wrong usage: nothing was done
	Invalid    = 3 // the measurement is invalid
)

// statusError is an error with an exit status of its own.
type statusError struct {
	status int
	err    error
}

func (e statusError) Error() string { return e.err.Error() }
func (e statusError) Unwrap() error { return e.err }

// Usagef is wrong usage; the text says on a second line what to do.
func Usagef(format string, args ...any) error {
	return statusError{WrongUsage, fmt.Errorf(format, args...)}
}

// Usage turns an error about what the user gave into wrong usage.
func Usage(err error) error {
	if err == nil {
		return nil
	}
	return statusError{WrongUsage, err}
}

// Invalidf is a measurement that must not be believed.
func Invalidf(format string, args ...any) error {
	return statusError{Invalid, fmt.Errorf(format, args...)}
}

// errInterrupted stands for all that a signal cut short.
var errInterrupted = errors.New("interrupted")

// withoutCancelled puts one errInterrupted in the place of everything that only
// says that its context was cancelled, and keeps what else went wrong.
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

// Report says what went wrong and returns the exit status.
func Report(w io.Writer, err error) int {
	if err == nil {
		return Done
	}
	err = withoutCancelled(err)
	_, _ = fmt.Fprintf(w, "stagebench: %v\n", err) // there is nowhere else to say it
	var s statusError
	if errors.As(err, &s) {
		return s.status
	}
	return Failed
}
