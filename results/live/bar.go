package live

import (
	"io"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"
)

const (
	// barTotal is the number of positions of the bar. Its progress is the share of
	// the time that is over.
	barTotal = 1000
	// refresh is the time between two drawings of the bar. It is long, because drawing
	// shares the CPU with the load driver.
	refresh = 500 * time.Millisecond
)

// bar is the screen for a terminal.
//
// The library mpb draws in its own goroutines, and its methods wait for them. These
// goroutines read the view from an atomic pointer. If they took the lock of the
// caller instead, they would deadlock with it.
type bar struct {
	view      atomic.Pointer[view]
	container *mpb.Progress
	bar       *mpb.Bar
	verbose   bool
}

func newBar(w io.Writer, v view, verbose bool) *bar {
	b := &bar{verbose: verbose}
	b.view.Store(&v)
	b.container = mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh(), mpb.WithRefreshRate(refresh))
	b.bar = b.container.New(barTotal, mpb.BarStyle(),
		mpb.BarWidth(14),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return b.head() })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return b.tail() })),
	)
	return b
}

// head returns the text left of the bar.
func (b *bar) head() string {
	v := b.view.Load()
	if v.name == "" {
		return "starting"
	}
	return v.visitText()
}

// tail returns the text right of the bar.
func (b *bar) tail() string {
	v := b.view.Load()
	parts := []string{v.stepText(), v.figuresText(), v.leftText(time.Now())}
	return strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), ", ")
}

func (b *bar) visit(v view) { b.show(v) }

func (b *bar) stepEnd(v view) {
	if b.verbose {
		b.print(v.stepLine())
	}
	b.show(v)
}

func (b *bar) show(v view) {
	b.view.Store(&v)
	var share float64
	if expected := v.end.Sub(v.begin); expected > 0 {
		share = float64(time.Since(v.begin)) / float64(expected)
	}
	// A full bar would end itself. Only close may end it.
	b.bar.SetCurrent(min(int64(share*barTotal), barTotal-1))
}

func (b *bar) print(text string) { _, _ = io.WriteString(b.container, text) } // see the package comment

// close erases the bar and waits until drawing has ended.
func (b *bar) close() {
	b.bar.Abort(true)
	b.container.Wait()
}
