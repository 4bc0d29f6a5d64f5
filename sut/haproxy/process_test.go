package haproxy_test

import (
	"bufio"
	"cmp"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/haproxy"
)

// timeout bounds every wait. A test that passes stays far below it.
const timeout = 60 * time.Second

// eventually polls until a condition holds. It ends the test after timeout.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, timeout, 5*time.Millisecond, what, holds)
}

// haproxyInstalled finds the server or skips the test.
func haproxyInstalled(t testing.TB) haproxy.Install {
	t.Helper()
	install, err := haproxy.Find()
	if err != nil {
		t.Skipf("needs Debian's package haproxy: %v", err)
	}
	return install
}

// newHAProxy describes a server with a balancing of "lb-1".
func newHAProxy(t testing.TB, install haproxy.Install, cfg sut.Balancing) *haproxy.Server {
	t.Helper()
	cfg.Node = "lb-1"
	return newConfig(t, haproxy.Config{Balancing: cfg, Install: install})
}

// newConfig describes a server on a free port, in a new directory if the configuration names none.
func newConfig(t testing.TB, cfg haproxy.Config) *haproxy.Server {
	t.Helper()
	free := porttest.Free(t)
	cfg.Listen, cfg.Port = free.Addr().AsSlice(), int(free.Port())
	cfg.Dir = cmp.Or(cfg.Dir, t.TempDir())
	return haproxy.New(cfg)
}

// process is a running server. It ends with the test.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // exit error; valid after done

	mu    sync.Mutex
	lines []string // lines of the log
}

// launch starts a command and does not wait until it serves. handle gets each line of its log.
func launch(t testing.TB, cmd *exec.Cmd, handle func(line string) bool) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	started := make(chan error)
	go func() {
		// The kernel sends the death signal when the thread that started the process ends.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := cmd.Start()
		started <- err
		if err != nil {
			return
		}
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, lines.Text())
			p.mu.Unlock()
			handle(lines.Text())
		}
		p.err = cmd.Wait()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = p.wait(t)
		if t.Failed() {
			t.Log("log of the server:\n" + p.log())
		}
	})
	return p
}

// startHAProxy prepares and starts a server, which handles its log, and waits until it serves.
func startHAProxy(t testing.TB, h *haproxy.Server) *process {
	t.Helper()
	return startWithLog(t, h, h.HandleLogLine)
}

// ignore is a log handler that does nothing.
func ignore(string) bool { return true }

// startWithLog is startHAProxy with another handler of the log.
func startWithLog(t testing.TB, h *haproxy.Server, handle func(line string) bool) *process {
	t.Helper()
	if err := h.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := launch(t, h.Command(), handle)
	eventually(t, "the server serves", func() bool {
		select {
		case <-p.done:
			t.Fatalf("the server ended during its start: %v", p.err)
		default:
		}
		return h.Ready(t.Context()) == nil
	})
	return p
}

func (p *process) log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

func (p *process) signal(t testing.TB, signal os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// wait waits until the server ends and returns its exit error.
func (p *process) wait(t testing.TB) error {
	t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(timeout):
		t.Fatalf("the server did not end within %v\n%s", timeout, p.log())
		return nil
	}
}
