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

// Rate is how many ops per second the times of a trace come to.
func (l Load) Rate() float64 {
	return float64(l.Times.Count(l.Length)) / max(l.Length.Seconds(), 1e-9)
}
