package live

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func ns(n int64) *int64 { return &n }

// measure makes the calls of a run with three visits.
func measure(p *Progress) {
	for i, name := range []string{"single/read-heavy", "db-split/read-heavy", "lb/read-heavy"} {
		p.Visit(name, i, 3, []time.Duration{90, 50, 30}[i]*time.Second)
		p.Step("warmup", 50)
		time.Sleep(5 * time.Second)
		p.Step("search", 812.5)
		for second := range 20 {
			p.Sample(ns(1_234_567), ns(int64(9_800_000+second*10_000)), 811.7)
			time.Sleep(time.Second)
		}
		if i == 1 {
			p.Note("killed web-1\nit comes back by itself\x1b[2J")
		}
	}
	p.Step("reference", 99.5)
	p.Sample(ns(12_000), nil, 99.49)
	p.Done()
}

func TestPlainLines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		measure(New(&out, false, true))
		want := `1/3 single/read-heavy, 1m30s left
  warmup 50 rps: no figures
  search 812 rps: 812 rps completed, p50 1.23ms, p99 9.99ms
2/3 db-split/read-heavy, 50s left
  warmup 50 rps: no figures
killed web-1
  it comes back by itself [2J
  search 812 rps: 812 rps completed, p50 1.23ms, p99 9.99ms
3/3 lb/read-heavy, 30s left
  warmup 50 rps: no figures
  search 812 rps: 812 rps completed, p50 1.23ms, p99 9.99ms
  reference 99.5 rps: 99.5 rps completed, p50 12µs, p99 -
`
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

// Without verbose, a log has one line per visit, and the notes.
func TestLinesWithoutSteps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		measure(New(&out, false, false))
		want := `1/3 single/read-heavy, 1m30s left
2/3 db-split/read-heavy, 50s left
killed web-1
  it comes back by itself [2J
3/3 lb/read-heavy, 30s left
`
		if diff := cmp.Diff(want, out.String()); diff != "" {
			t.Errorf("(-want +got):\n%s", diff)
		}
	})
}

func TestBar(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out bytes.Buffer
		measure(New(&out, true, false))
		text := out.String()
		for _, want := range []string{
			"1/3 single/read-heavy [------------] warmup 50 rps, 1m30s left\n",
			"2/3 db-split/read-heavy [==>--] search 812 rps, p50 1.23ms, p99 9.91ms, 34s left\n",
			"killed web-1\n  it comes back by itself [2J\n",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("%q was never shown", want)
			}
		}
		// At the end the bar is erased and only the note stays visible.
		if screen := draw(text); screen != "killed web-1\n  it comes back by itself [2J\n" {
			t.Errorf("the screen shows %q", screen)
		}
	})
}

// An interrupted run may call Done at any moment.
func TestDoneAtAnyMoment(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		for name, play := range map[string]func(*Progress){
			"at once":     func(*Progress) {},
			"in a visit":  func(p *Progress) { p.Visit("a", 0, 2, time.Second) },
			"in a step":   func(p *Progress) { p.Visit("a", 0, 2, time.Second); p.Step("search", 1) },
			"with a note": func(p *Progress) { p.Note("a") },
		} {
			t.Run(fmt.Sprintf("%s, terminal %v", name, terminal), func(t *testing.T) {
				var out bytes.Buffer
				p := New(&out, terminal, true)
				play(p)
				p.Done()
				length := out.Len()
				p.Done()
				p.Visit("b", 1, 2, time.Second)
				p.Step("search", 2)
				p.Sample(nil, nil, 3)
				p.Note("late")
				if out.Len() != length {
					t.Errorf("shown after Done: %q", out.String()[length:])
				}
			})
		}
	}
}

func TestConcurrentUse(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		p := New(io.Discard, terminal, true)
		var group sync.WaitGroup
		for i := range 8 {
			group.Go(func() {
				p.Visit(fmt.Sprint(i), i, 8, time.Second)
				p.Step("search", 100)
				p.Sample(ns(1), ns(2), 100)
				p.Note("note")
				_, _ = io.WriteString(p, "a line of a logger\n")
			})
		}
		group.Go(p.Done)
		group.Wait()
		p.Done()
	}
}

type broken struct{}

func (broken) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// A closed terminal must not stop the run.
func TestBrokenWriter(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		synctest.Test(t, func(*testing.T) { measure(New(broken{}, terminal, true)) })
	}
}

// For a real file, the library asks the kernel for the size of the terminal.
func TestFileThatIsNoTerminal(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/stderr")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	p := New(f, true, false)
	p.Visit("a", 0, 2, time.Second)
	p.Done()
}

func TestLeft(t *testing.T) {
	end := time.Unix(300, 0)
	for _, test := range []struct {
		name string
		view view
		now  time.Duration
		want string
	}{
		{"nothing known", view{}, time.Minute, ""},
		{"as expected", view{end: end}, 61 * time.Second, "3m59s left"},
		{"in seconds", view{end: end}, 250 * time.Second, "50s left"},
		{"longer than expected", view{end: end}, 6 * time.Minute, "almost done"},
	} {
		if got := test.view.leftText(time.Unix(0, 0).Add(test.now)); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, got, test.want)
		}
	}
}

func TestLatency(t *testing.T) {
	for want, n := range map[string]int64{
		"0s": 0, "999ns": 999, "12µs": 12_000, "123µs": 123_400, "1.23ms": 1_234_567, "14.2ms": 14_234_567,
		"1.23s": 1_234_567_890, "60s": 60_000_000_000,
	} {
		if got := latency(&n); strings.Replace(got, "1m0s", "60s", 1) != want {
			t.Errorf("%d ns is %q, want %q", n, got, want)
		}
	}
}

// draw returns the content of a terminal after the text was written to it. It knows
// the only control sequence of the library: move up some lines, and erase the rest.
func draw(text string) string {
	var screen []string
	for text != "" {
		if rest, found := strings.CutPrefix(text, "\x1b["); found {
			var up int
			n, err := fmt.Sscanf(rest, "%dA\x1b[J", &up)
			if n == 1 && err == nil {
				screen = screen[:len(screen)-up]
				_, text, _ = strings.Cut(rest, "J")
				continue
			}
		}
		line, rest, _ := strings.Cut(text, "\n")
		screen, text = append(screen, line+"\n"), rest
	}
	return strings.Join(screen, "")
}
