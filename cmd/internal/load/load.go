// Package load builds the load for the value of --workload: the name of a preset, a
// workload file, or a trace.
//
// It opens files and sends no requests. A Load is safe for concurrent use.
package load

import (
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
)

// Load is a workload and, if it has one, its own schedule.
type Load struct {
	Workload workloads.Workload
	// Times is the schedule of a trace or of a workload file with phases; nil for a workload that has no rate of its own.
	Times pace.Schedule
	// Length is the duration of Times.
	Length time.Duration
	// Trace counts the lines of a trace by how they were used; nil without a trace.
	Trace *results.Trace
}

// Classes lists the classes of the outcomes; nil if they are not known.
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
		names = append(names, string(login.LoginOp(0).Class)) // logins after lost sessions
	}
	return names
}

// Rate returns the mean rate of Times in ops per second.
func (l Load) Rate() float64 {
	return float64(l.Times.Count(l.Length)) / max(l.Length.Seconds(), 1e-9)
}
