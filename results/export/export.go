// Package export writes runs in the formats of other tools: benchstat, trackers of benchmarks, CI systems and
// Prometheus.
//
// It computes no statistics and does no I/O besides the given writer. Metrics turns a run into neutral figures, and
// Checks into neutral verdicts. The writers take figures or verdicts from any source, not only from runs. A figure that
// does not exist is left out, never replaced. A format without a place for a doubt leaves out figures that are not
// valid.
//
// Durations of metrics are in nanoseconds. Each writer converts them to the unit of its format.
//
//	err := export.Write(os.Stdout, export.FormatBench, run)
package export

import (
	"errors"
	"fmt"
	"io"

	"github.com/stagebench/stagebench/results"
)

// Format is the format of a tool. Its name is what users write.
type Format string

// The formats.
const (
	FormatBench       Format = "gobench"                  // Go benchmark text, for benchstat
	FormatSmaller     Format = "github-benchmark-smaller" // github-action-benchmark, tool customSmallerIsBetter
	FormatBigger      Format = "github-benchmark-bigger"  // github-action-benchmark, tool customBiggerIsBetter
	FormatBencher     Format = "bencher"                  // Bencher Metric Format
	FormatJUnit       Format = "junit"
	FormatOpenMetrics Format = "openmetrics"
	FormatLoad        Format = "load-performance" // the summary of k6, as GitLab reads it
)

// writer is a format with the function that writes a run.
type writer struct {
	format Format
	write  func(io.Writer, results.Run) error
}

// writers lists the formats. To add one, add it here.
func writers() []writer {
	of := func(write func(io.Writer, ...Metric) error) func(io.Writer, results.Run) error {
		return func(w io.Writer, run results.Run) error { return write(w, Metrics(run)...) }
	}
	return []writer{
		{FormatBench, of(Bench)},
		{FormatSmaller, of(func(w io.Writer, m ...Metric) error { return GitHubBenchmark(w, Lower, m...) })},
		{FormatBigger, of(func(w io.Writer, m ...Metric) error { return GitHubBenchmark(w, Higher, m...) })},
		{FormatBencher, of(Bencher)},
		{FormatJUnit, func(w io.Writer, run results.Run) error { return JUnit(w, Checks(run)...) }},
		{FormatOpenMetrics, of(OpenMetrics)},
		{FormatLoad, LoadPerformance},
	}
}

// Formats lists the formats.
func Formats() (all []Format) {
	for _, w := range writers() {
		all = append(all, w.format)
	}
	return all
}

// The reasons why a run cannot be written in a format. An empty file would be no better than none: its reader would
// take it for success.
var (
	ErrNothing   = errors.New("the run has no valid figure for this format")
	ErrManyCells = errors.New("load-performance holds one cell, and the run has more")
)

// Write writes a run in a format. The error may be ErrNothing or ErrManyCells.
func Write(w io.Writer, format Format, run results.Run) error {
	for _, known := range writers() {
		if known.format == format {
			return known.write(w, run)
		}
	}
	return fmt.Errorf("unknown format %q: want one of %v", format, Formats())
}
