package proc

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/polltest"
)

// patience is how long a test waits for an event.
const patience = 20 * time.Second

func spec(t *testing.T, behaviour string) Spec {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	return Spec{
		Name: "node-1", Path: self,
		// Without this, a binary built with the race detector sleeps for a second at exit.
		Env:   append(os.Environ(), "GORACE=atexit_sleep_ms=0", childEnv+"="+behaviour),
		Stdin: []byte("{\"a\":1}\n"), Log: io.Discard, ReadyTimeout: patience, StopTimeout: patience,
		Launch: (*exec.Cmd).Start,
	}
}

func start(t *testing.T, spec Spec) *Process {
	t.Helper()
	p, err := Start(t.Context(), spec)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { p.Kill(); p.Wait() })
	return p
}

// awaitGone waits until the process is dead.
func awaitGone(t *testing.T, pid int) {
	t.Helper()
	eventually(t, "process "+strconv.Itoa(pid)+" is gone", func() bool {
		stat, err := ReadStat("/", pid)
		return err != nil || stat.State == 'Z'
	})
}

// eventually polls until a condition holds. It ends the test after patience.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, patience, 5*time.Millisecond, what, holds)
}

func TestReadyCarriesTheFirstLineAndLogsTheRest(t *testing.T) {
	t.Parallel()
	s := spec(t, "good")
	var log lockedBuffer
	s.Log = &log
	p := start(t, s)
	if got := string(p.Ready()); got != "{\"echo\":{\"a\":1}}\n" {
		t.Errorf("ready document %q", got)
	}
	eventually(t, "both streams are logged", func() bool {
		text := log.String()
		return strings.Contains(text, `got {"a":1}`) && strings.Contains(text, "a line after ready")
	})
}

func TestClosedStdinEndsTheChild(t *testing.T) {
	t.Parallel()
	p := start(t, spec(t, "good"))
	p.CloseStdin()
	if exit := p.Wait(); exit.Cause != "exit status 7" || exit.Status != 7 || exit.Clean() {
		t.Errorf("exit %+v", exit)
	}
}

func TestStopLetsTheChildDrain(t *testing.T) {
	t.Parallel()
	p := start(t, spec(t, "drains"))
	exit := p.Stop(t.Context())
	if !exit.Clean() || exit.Cause != "exit status 0" || len(exit.Tail) != 1 || exit.Tail[0] != "drained" {
		t.Errorf("exit %+v", exit)
	}
	if again := p.Stop(t.Context()); again.Cause != exit.Cause {
		t.Errorf("second stop says %q", again.Cause)
	}
}

func TestStopContinuesAStoppedChild(t *testing.T) {
	t.Parallel()
	p := start(t, spec(t, "drains"))
	if err := p.SignalGroup(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	if exit := p.Stop(t.Context()); !exit.Clean() {
		t.Errorf("exit %+v", exit)
	}
}

func TestStopIsBounded(t *testing.T) {
	t.Parallel()
	for name, bound := range map[string]struct {
		timeout time.Duration
		cancel  bool
	}{
		"by its timeout":   {timeout: 50 * time.Millisecond},
		"by its context":   {timeout: patience, cancel: true},
		"by both together": {timeout: 1, cancel: true},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			s := spec(t, "ignores SIGTERM")
			s.StopTimeout = bound.timeout
			p := start(t, s)
			ctx, cancel := context.WithCancel(t.Context())
			defer cancel()
			if bound.cancel {
				cancel()
			}
			if exit := p.Stop(ctx); exit.Cause != "killed by SIGKILL" || exit.Signal != syscall.SIGKILL {
				t.Errorf("exit %+v", exit)
			}
		})
	}
}

func TestDeathBeforeReady(t *testing.T) {
	t.Parallel()
	for behaviour, want := range map[string]struct {
		reason string
		last   string
	}{
		"dies before ready":  {"exit status 3 before it was ready", "no room left"},
		"closes stdout":      {"not ready: the process closed its standard output", ""},
		"endless ready line": {"not ready: the ready line is longer than 65536 bytes", ""},
	} {
		t.Run(behaviour, func(t *testing.T) {
			t.Parallel()
			_, err := Start(t.Context(), spec(t, behaviour))
			var failed *StartError
			if !errors.As(err, &failed) {
				t.Fatalf("error %v, want a StartError", err)
			}
			if failed.Reason != want.reason || !strings.HasPrefix(err.Error(), "node-1: "+want.reason+"\n") {
				t.Errorf("error %q, want reason %q", err, want.reason)
			}
			if want.last == "" {
				return
			}
			tail := failed.Exit.Tail
			if len(tail) != 21 || tail[20] != want.last || tail[19] != "line 49" {
				t.Errorf("tail %q", tail)
			}
		})
	}
}

func TestNeverReady(t *testing.T) {
	t.Parallel()
	s := spec(t, "never ready")
	s.ReadyTimeout = 100 * time.Millisecond
	_, err := Start(t.Context(), s)
	if err == nil || !strings.HasPrefix(err.Error(), "node-1: not ready after 100ms\n") {
		t.Fatalf("error %v", err)
	}
}

func TestCancelledStartLeavesNoProcess(t *testing.T) {
	t.Parallel()
	s := spec(t, "never ready")
	ctx, cancel := context.WithCancelCause(t.Context())
	defer cancel(nil)
	interrupted := errors.New("interrupted")
	var log lockedBuffer
	s.Log = &log
	ended := make(chan error, 1)
	go func() {
		_, err := Start(ctx, s)
		ended <- err
	}()
	eventually(t, "the child runs", func() bool { return strings.Contains(log.String(), "thinking") })
	cancel(interrupted)
	if err := <-ended; !errors.Is(err, interrupted) {
		t.Fatalf("error %v, want %v", err, interrupted)
	}
}

func TestMissingBinary(t *testing.T) {
	t.Parallel()
	s := spec(t, "good")
	s.Path = "/does/not/exist"
	if _, err := Start(t.Context(), s); !errors.Is(err, os.ErrNotExist) {
		t.Fatalf("error %v", err)
	}
}

func TestAChildMayLeaveALargeDocumentUnread(t *testing.T) {
	t.Parallel()
	s := spec(t, "never reads")
	s.Stdin = bytes.Repeat([]byte("x"), 1<<20)
	s.StopTimeout = time.Millisecond
	p := start(t, s)
	p.Stop(t.Context())
}

func TestCauseOfDeath(t *testing.T) {
	t.Parallel()
	p := start(t, spec(t, "kills itself"))
	if exit := p.Wait(); exit.Cause != "killed by SIGKILL" {
		t.Errorf("exit %+v", exit)
	}
	if err := p.Signal(syscall.SIGTERM); err != nil {
		t.Errorf("signal after death: %v", err)
	}
}

func TestDeathTakesTheProcessGroupWithIt(t *testing.T) {
	t.Parallel()
	p := start(t, spec(t, "forks"))
	forked := forkedPID(t, p)
	if err := p.Signal(syscall.SIGKILL); err != nil { // only the leader
		t.Fatal(err)
	}
	p.Wait()
	awaitGone(t, forked)
}

func TestAProcessThatLeftTheGroupDoesNotDelayDone(t *testing.T) {
	t.Parallel()
	p := start(t, spec(t, "forks and leaves the group"))
	forked := forkedPID(t, p)
	t.Cleanup(func() { _ = syscall.Kill(forked, syscall.SIGKILL) })
	p.Kill()
	p.Wait()
}

func forkedPID(t *testing.T, p *Process) int {
	t.Helper()
	pid, err := strconv.Atoi(strings.TrimSpace(string(p.Ready())))
	if err != nil {
		t.Fatal(err)
	}
	return pid
}

func TestLogTail(t *testing.T) {
	t.Parallel()
	var sink bytes.Buffer
	tail := logTail{sink: &sink, keep: 2}
	long := strings.Repeat("y", 3*maxTailLine)
	for _, text := range []string{"one\ntw", "o\nthree\n", long, "\nopen"} {
		if _, err := tail.Write([]byte(text)); err != nil {
			t.Fatal(err)
		}
	}
	lines := tail.lines()
	if len(lines) != 3 || lines[0] != "three" || lines[1] != long[:maxTailLine] || lines[2] != "open" {
		t.Errorf("lines %.20q", lines)
	}
	if want := "one\ntwo\nthree\n" + long + "\nopen"; sink.String() != want {
		t.Errorf("the sink got %d bytes, want %d", sink.Len(), len(want))
	}
}

func TestLogTailSurvivesItsSink(t *testing.T) {
	t.Parallel()
	tail := logTail{sink: brokenWriter{}, keep: 5}
	for range 3 {
		if n, err := tail.Write([]byte("line\n")); n != 5 || err != nil {
			t.Fatalf("write: %d, %v", n, err)
		}
	}
	want := "(log file: no space left on device) line line line"
	if got := strings.Join(tail.lines(), " "); got != want {
		t.Errorf("tail %q, want %q", got, want)
	}
}

type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

type lockedBuffer struct {
	mu   sync.Mutex
	text bytes.Buffer // guarded by mu
}

func (b *lockedBuffer) Write(text []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(text)
}

func (b *lockedBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}
