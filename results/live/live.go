// Package live shows a run while it runs: which cell and step are being
// measured, the figures so far, and how long it will still take.
//
// On a terminal that is one bar that redraws itself and disappears at the end,
// elsewhere one plain line per step. Give it standard error: the tables belong
// to standard output, and nothing here may get between them. What is shown here
// is gone when the run is over; nothing is measured or stored, and a writer
// that fails is not worth stopping a run for, so its errors are ignored.
//
// Order of calls: New, then for each cell Cell, and within it for each step
// Step and as many Samples as there are; Note and Write at any time; Done at the
// end, also after an interruption. All methods may be called concurrently.
// Latencies are nanoseconds, rates are requests per second.
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
	now    view   // guarded by mu: what is shown
	closed bool   // guarded by mu
}

// screen is one way to show a view. Its methods are called one at a time.
type screen interface {
	cell(v view)       // a cell begins
	stepEnd(v view)    // the step of the view is over
	show(v view)       // something else has changed
	print(text string) // whole lines that stay
	close()
}

// view is what there is to show. It is a value: screens keep copies.
type view struct {
	cells    int // of the run
	index    int // of the cell, from 0
	name     string
	purpose  string // of the step; empty = none yet
	offered  float64
	sampled  bool // the figures below are of this step
	p50, p99 *int64
	rps      float64
	expected time.Duration // the whole run, as announced; 0 = unknown
	run      time.Time     // when the run began
	begun    time.Time     // when the cell began
}

// New shows a run of so many cells on w, which is a terminal or not.
func New(w io.Writer, terminal bool, cells int) *Progress {
	now := time.Now()
	p := &Progress{now: view{cells: cells, run: now, begun: now}}
	if terminal {
		p.screen = newBar(w, p.now)
	} else {
		p.screen = lines{w}
	}
	return p
}

// Expect announces how long the whole run should take. Without it the time left
// is unknown until the first cell is over.
func (p *Progress) Expect(whole time.Duration) {
	p.do(func() { p.now.expected = whole })
}

// Cell says that a cell begins: its name and its place in the run, from 0.
func (p *Progress) Cell(name string, index int) {
	p.do(func() {
		p.endStep()
		p.now.name, p.now.index, p.now.begun = name, index, time.Now()
		p.screen.cell(p.now)
	})
}

// Step says that a step of the cell begins, what for, and at which rate.
func (p *Progress) Step(purpose string, rate float64) {
	p.do(func() {
		p.endStep()
		p.now.purpose, p.now.offered = purpose, rate
		p.screen.show(p.now)
	})
}

// Sample brings the figures of the step so far: percentiles of the response
// time, nil where there are too few samples, and the completed rate.
func (p *Progress) Sample(p50, p99 *int64, rps float64) {
	p.do(func() {
		p.now.p50, p.now.p99, p.now.rps, p.now.sampled = p50, p99, rps, true
		p.screen.show(p.now)
	})
}

// Note shows a line that stays: an event, a doubt, why a cell was given up.
func (p *Progress) Note(text string) {
	p.do(func() { p.screen.print(printable(text) + "\n") })
}

// Write shows whole lines that stay, such as a logger's: a logger that writes
// past a Progress to the same terminal would be overdrawn by the bar.
func (p *Progress) Write(text []byte) (int, error) {
	p.do(func() { p.screen.print(strings.TrimSuffix(string(text), "\n") + "\n") })
	return len(text), nil
}

// Done ends the show and takes the bar away. It may be called again; every
// other call after it does nothing.
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

// endStep forgets the step and its figures; p.mu is held.
func (p *Progress) endStep() {
	if p.now.purpose != "" {
		p.screen.stepEnd(p.now)
	}
	p.now.purpose, p.now.offered = "", 0
	p.now.p50, p.now.p99, p.now.rps, p.now.sampled = nil, nil, 0, false
}

// left estimates how long the run will still take: from the cells that are
// over, as soon as there is one, and from what was announced until then.
func (v view) left(now time.Time) (left time.Duration, known bool) {
	switch {
	case v.index > 0:
		each := v.begun.Sub(v.run) / time.Duration(v.index)
		return each*time.Duration(v.cells-v.index-1) + max(0, each-now.Sub(v.begun)), true
	case v.expected > 0:
		return max(0, v.expected-now.Sub(v.run)), true
	}
	return 0, false
}

func (v view) leftText(now time.Time) string {
	left, known := v.left(now)
	switch {
	case !known:
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

func (v view) cellText() string { return fmt.Sprintf("%d/%d %s", v.index+1, v.cells, v.name) }

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

// latency has three significant digits or a little less, which is enough for
// what changes every second.
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

// printable drops what would steer a terminal, and indents what follows the
// first line.
func printable(text string) string {
	text = strings.ReplaceAll(strings.TrimSpace(text), "\n", "\n  ")
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) && r != '\n' {
			return ' '
		}
		return r
	}, text)
}

// lines is the screen of a log file: a line where a cell begins and one where
// a step ends.
type lines struct{ w io.Writer }

func (l lines) cell(v view) {
	text := "cell " + v.cellText()
	if left := v.leftText(time.Now()); left != "" {
		text += ", " + left
	}
	l.print(text + "\n")
}

func (l lines) stepEnd(v view) {
	figures := "no figures"
	if v.sampled {
		figures = fmt.Sprintf("%s rps completed, %s", rate(v.rps), v.figuresText())
	}
	l.print("  " + v.stepText() + ": " + figures + "\n")
}

func (lines) show(view)           {}
func (l lines) print(text string) { _, _ = io.WriteString(l.w, text) } // see the package comment
func (lines) close()              {}
