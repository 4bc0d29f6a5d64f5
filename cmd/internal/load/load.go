// Package load turns what people write after --workload into what is sent: the
// name of a workload that we ship, a workload file, or a trace.
//
// It opens files and sends nothing. A Load may be used by many goroutines.
package load

import (
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
)

// Load is a workload, with its own times if it has any.
type Load struct {
	Workload workloads.Workload
	// Times is when the ops of a trace are meant to happen; nil for a workload
	// that can be sent at any rate.
	Times pace.Schedule
	// Length is how long Times lasts.
	Length time.Duration
	// Trace says what became of the lines of a trace, nil for anything else.
	Trace *results.Trace
}

// Classes lists the classes of its outcomes; nil when they are not known.
func (l Load) Classes() []string {
	w, known := l.Workload.(interface{ Classes() []workloads.Class })
	if !known {
		return nil
	}
	var names []string
	for _, class := range w.Classes() {
		names = append(names, string(class))
	}
	if login, ok := l.Workload.(workloads.Login); ok && l.Workload.Users() > 0 {
		names = append(names, string(login.LoginOp(0).Class)) // of users who lose their session
	}
	return names
}

// Rate is how many ops per second the times of a trace come to.
func (l Load) Rate() float64 {
	return float64(l.Times.Count(l.Length)) / max(l.Length.Seconds(), 1e-9)
}
