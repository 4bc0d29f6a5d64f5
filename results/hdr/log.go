package hdr

import (
	"cmp"
	"fmt"
	"io"
	"regexp"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"
)

// Log writes interval histograms in the HdrHistogram log format, version 1.3,
// which Java's HistogramLogProcessor and HistogramLogAnalyzer read. Every line
// has a tag, <class>-<clock>:
//
//	rt  response time of successes      st   service time of successes
//	ft  time until a failure            fst  service time until a failure
//	wt  wait                            lag  delay caused by the client
//
// For an op without an answer, a timeout for example, the response would have taken longer than these times.
//
// Interval times are seconds since the epoch with base time 0. Values are
// nanoseconds. The Interval_Max column is in milliseconds.
//
// A Log belongs to one goroutine.
type Log struct {
	w *hdrhistogram.HistogramLogWriter
}

// NewLog writes the header of a log. The comment describes the file.
func NewLog(w io.Writer, comment string, start time.Time) (*Log, error) {
	l := &Log{w: hdrhistogram.NewHistogramLogWriter(w)}
	if err := cmp.Or(l.w.OutputComment("["+comment+"]"), l.w.OutputLogFormatVersion(),
		l.w.OutputStartTime(start.UnixMilli()), l.w.OutputLegend()); err != nil {
		return nil, fmt.Errorf("write histogram log header: %w", err)
	}
	return l, nil
}

// tagPattern matches valid tags. The library's own check accepts commas and spaces
// at both ends.
var tagPattern = regexp.MustCompile(`^[A-Za-z0-9_-]+$`)

// Write appends one closed interval.
func (l *Log) Write(i Interval) error {
	if tag := i.h.Tag(); !tagPattern.MatchString(tag) {
		return fmt.Errorf("histogram tag %q: want letters, digits, '-' and '_' only", tag)
	}
	if err := l.w.OutputIntervalHistogram(i.h); err != nil {
		return fmt.Errorf("write histogram interval: %w", err)
	}
	return nil
}

// Interval is one closed interval of one tag. It is valid only until the callback
// that received it returns.
type Interval struct{ h *hdrhistogram.Histogram }
