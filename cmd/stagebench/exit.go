package main

import (
	"context"
	"errors"
	"fmt"
	"io"
)

// The exit statuses, the only ones there are.
const (
	exitDone    = 0 // what was asked for was done
	exitFailed  = 1 // it failed
	exitUsage   = 2 // wrong usage: nothing was done
	exitInvalid = 3 // the measurement is invalid
)

// statusError is an error with an exit status of its own.
type statusError struct {
	status int
	err    error
}

func (e statusError) Error() string { return e.err.Error() }
func (e statusError) Unwrap() error { return e.err }

// usagef is wrong usage; the text says on a second line what to do.
func usagef(format string, args ...any) error {
	return statusError{exitUsage, fmt.Errorf(format, args...)}
}

// usage turns an error about what the user gave into wrong usage.
func usage(err error) error {
	if err == nil {
		return nil
	}
	return statusError{exitUsage, err}
}

// invalidf is a measurement that must not be believed.
func invalidf(format string, args ...any) error {
	return statusError{exitInvalid, fmt.Errorf(format, args...)}
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

// report says what went wrong and returns the exit status.
func report(w io.Writer, err error) int {
	if err == nil {
		return exitDone
	}
	err = withoutCancelled(err)
	_, _ = fmt.Fprintf(w, "stagebench: %v\n", err) // there is nowhere else to say it
	var s statusError
	if errors.As(err, &s) {
		return s.status
	}
	return exitFailed
}
