// Package live shows the progress of a run: the current cell and step, the figures
// so far, and the time left.
//
// A terminal shows one bar that is redrawn, and erased at the end. Other writers
// get one line per visit, and if wanted one per step. Use standard error, because the tables are written to
// standard output. The package measures and stores nothing. It ignores errors of
// the writer: they must not stop a run.
//
// Order of calls: New; then Visit for each visit, within it Step for each step, and
// within it any number of Samples; Note and Write at any time; Done at the end,
// also after an interruption. All methods may be called concurrently. Latencies are
// nanoseconds, rates are requests per second.
package live

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Progress shows one run.
type Progress struct {
	mu     sync.Mutex
	screen screen // guarded by mu
	now    view   // guarded by mu: current view
	closed bool   // guarded by mu
}

// screen shows views. Its methods are called one at a time.
type screen interface {
	visit(v view)      // a visit begins
	stepEnd(v view)    // the step of the view has ended
	show(v view)       // another value has changed
	print(text string) // show complete lines that stay visible
	close()
}

// view is the progress to show. It is a value, and screens keep copies.
type view struct {
	visits   int // number of visits in the run; 0 = not known yet
	index    int // index of the visit, from 0
	name     string
	purpose  string // purpose of the step; empty = no step yet
	offered  float64
	sampled  bool // p50, p99 and rps are those of this step
	p50, p99 *int64
	rps      float64
	begin    time.Time // of the run
	end      time.Time // expected end of the run; zero = unknown
}

// New shows a run on w. Terminal says whether w is a terminal. Verbose adds a line for each step.
func New(w io.Writer, terminal, verbose bool) *Progress {
	p := &Progress{now: view{begin: time.Now()}}
	if terminal {
		p.screen = newBar(w, p.now, verbose)
	} else {
		p.screen = lines{w, verbose}
	}
	return p
}

// Visit starts a visit: its name, its index of all visits, from 0, and the expected time until the end of the run.
func (p *Progress) Visit(name string, index, of int, left time.Duration) {
	p.do(func() {
		p.endStep()
		p.now.name, p.now.index, p.now.visits, p.now.end = name, index, of, time.Now().Add(left)
		p.screen.visit(p.now)
	})
}

// Step starts a step of the visit, with its purpose and offered rate.
func (p *Progress) Step(purpose string, rate float64) {
	p.do(func() {
		p.endStep()
		p.now.purpose, p.now.offered = purpose, rate
		p.screen.show(p.now)
	})
}

// Sample updates the figures of the step: percentiles of the response time, nil if
// there are too few samples, and the completed rate.
func (p *Progress) Sample(p50, p99 *int64, rps float64) {
	p.do(func() {
		p.now.p50, p.now.p99, p.now.rps, p.now.sampled = p50, p99, rps, true
		p.screen.show(p.now)
	})
}

// Note shows a line that stays visible: an event, a warning, or why a cell failed.
func (p *Progress) Note(text string) {
	p.do(func() { p.screen.print(printable(text) + "\n") })
}

// Write shows complete lines that stay visible. Loggers must write to the Progress:
// if they write to the terminal directly, the bar overwrites their lines.
func (p *Progress) Write(text []byte) (int, error) {
	p.do(func() { p.screen.print(strings.TrimSuffix(string(text), "\n") + "\n") })
	return len(text), nil
}

// Done ends the display and erases the bar. All later calls do nothing.
func (p *Progress) Done() {
	p.do(func() {
		p.endStep()
		p.screen.close()
		p.closed = true
	})
}

func (p *Progress) do(change func()) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if !p.closed {
		change()
	}
}

// endStep ends the current step and clears its figures. The caller holds p.mu.
func (p *Progress) endStep() {
	if p.now.purpose != "" {
		p.screen.stepEnd(p.now)
	}
	p.now.purpose, p.now.offered = "", 0
	p.now.p50, p.now.p99, p.now.rps, p.now.sampled = nil, nil, 0, false
}

func (v view) leftText(now time.Time) string {
	left := v.end.Sub(now)
	switch {
	case v.end.IsZero():
		return ""
	case left < time.Second:
		return "almost done"
	}
	left = left.Round(time.Second)
	if left < time.Minute {
		return fmt.Sprintf("%ds left", left/time.Second)
	}
	return fmt.Sprintf("%dm%02ds left", left/time.Minute, left%time.Minute/time.Second)
}

func (v view) visitText() string { return fmt.Sprintf("%d/%d %s", v.index+1, v.visits, v.name) }

func (v view) stepText() string {
	if v.purpose == "" {
		return ""
	}
	return fmt.Sprintf("%s %s rps", v.purpose, rate(v.offered))
}

func (v view) figuresText() string {
	if !v.sampled {
		return ""
	}
	return fmt.Sprintf("p50 %s, p99 %s", latency(v.p50), latency(v.p99))
}

func rate(rps float64) string {
	if rps < 100 {
		return fmt.Sprintf("%.3g", rps)
	}
	return fmt.Sprintf("%.0f", rps)
}

// latency formats a latency with about three significant digits.
func latency(ns *int64) string {
	if ns == nil {
		return "-"
	}
	d := time.Duration(*ns)
	for unit := time.Second * 10; unit > 1; unit /= 10 {
		if d >= unit {
			return d.Round(unit / 100).String()
		}
	}
	return d.String()
}

// printable replaces control characters, which could send commands to the terminal,
// and indents all lines but the first.
func printable(text string) string {
	text = strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return ' '
		}
		return r
	}, text)
}

// lines is the screen for a log file: one line at the start of a visit, and if verbose one at
// the end of a step.
type lines struct {
	w       io.Writer
	verbose bool
}

func (l lines) visit(v view) {
	text := v.visitText()
	if left := v.leftText(time.Now()); left != "" {
		text += ", " + left
	}
	l.print(text + "\n")
}

func (l lines) stepEnd(v view) {
	if l.verbose {
		l.print(v.stepLine())
	}
}

// stepLine returns the line of a step that has ended.
func (v view) stepLine() string {
	figures := "no figures"
	if v.sampled {
		figures = fmt.Sprintf("%s rps completed, %s", rate(v.rps), v.figuresText())
	}
	return "  " + v.stepText() + ": " + figures + "\n"
}

func (lines) show(view)           {}
func (l lines) print(text string) { _, _ = io.WriteString(l.w, text) } // an error must not stop a run
func (lines) close()              {}
