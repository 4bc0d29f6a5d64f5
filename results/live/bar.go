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
	// barTotal is the length of the bar in steps of its own; what they stand
	// for is time.
	barTotal = 1000
	// refresh is how often the bar is redrawn. It shares the cores with the load
	// driver, so not more often than somebody wants to know.
	refresh = 500 * time.Millisecond
)

// bar is the screen of a terminal.
//
// mpb draws from goroutines of its own, and waits for them in its own calls. So
// they read the view from an atomic pointer: if they took the lock that the
// caller of those calls holds, both would wait for each other.
type bar struct {
	view      atomic.Pointer[view]
	container *mpb.Progress
	bar       *mpb.Bar
}

func newBar(w io.Writer, v view) *bar {
	b := &bar{}
	b.view.Store(&v)
	b.container = mpb.New(mpb.WithOutput(w), mpb.WithAutoRefresh(), mpb.WithRefreshRate(refresh))
	b.bar = b.container.New(barTotal, mpb.BarStyle(),
		mpb.BarWidth(14),
		mpb.PrependDecorators(decor.Any(func(decor.Statistics) string { return b.head() })),
		mpb.AppendDecorators(decor.Any(func(decor.Statistics) string { return b.tail() })),
	)
	return b
}

// head is what stands left of the bar.
func (b *bar) head() string {
	v := b.view.Load()
	if v.name == "" {
		return "starting"
	}
	return v.cellText()
}

// tail is what stands right of the bar.
func (b *bar) tail() string {
	v := b.view.Load()
	parts := []string{v.stepText(), v.figuresText(), v.leftText(time.Now())}
	return strings.Join(slices.DeleteFunc(parts, func(part string) bool { return part == "" }), ", ")
}

func (b *bar) cell(v view)    { b.show(v) }
func (b *bar) stepEnd(v view) { b.show(v) }

func (b *bar) show(v view) {
	b.view.Store(&v)
	now := time.Now()
	var share float64
	if left, known := v.left(now); known {
		elapsed := now.Sub(v.run)
		share = float64(elapsed) / float64(max(1, elapsed+left))
	}
	// A full bar would end itself; only close does that.
	b.bar.SetCurrent(min(int64(share*barTotal), barTotal-1))
}

func (b *bar) print(text string) { _, _ = io.WriteString(b.container, text) } // see the package comment

// close erases the bar and waits until nothing draws any more.
func (b *bar) close() {
	b.bar.Abort(true)
	b.container.Wait()
}
