package varnish_test

import (
	"bufio"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/polltest"
	"github.com/stagebench/stagebench/sut/varnish"
)

// timeout bounds every wait. A test that passes stays far below it.
const timeout = 60 * time.Second

// eventually polls until a condition holds. It ends the test after timeout.
func eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, timeout, 5*time.Millisecond, what, holds)
}

// installed finds the server or skips the test.
func installed(t testing.TB) varnish.Install {
	t.Helper()
	install, err := varnish.Find()
	if err != nil {
		t.Skipf("needs Debian's package varnish: %v", err)
	}
	return install
}

// process is a running server. It ends with the test.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // exit error; valid after done

	mu    sync.Mutex
	lines []string // lines of the log
}

// launch starts a command and does not wait until it serves.
func launch(t testing.TB, cmd *exec.Cmd) *process {
	t.Helper()
	p := &process{cmd: cmd, done: make(chan struct{})}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
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
		read := make(chan struct{})
		go func() {
			defer close(read)
			for lines := bufio.NewScanner(stderr); lines.Scan(); {
				p.mu.Lock()
				p.lines = append(p.lines, lines.Text())
				p.mu.Unlock()
			}
		}()
		state, err := cmd.Process.Wait() // workers of a killed server keep the pipe open
		if p.err = err; err == nil && !state.Success() {
			p.err = &exec.ExitError{ProcessState: state}
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM)
		_ = p.wait(t)
		if t.Failed() {
			t.Log("log of the server:\n" + p.log())
		}
	})
	return p
}

// start prepares and starts a server, and waits until it serves.
func start(t testing.TB, s *varnish.Server) *process {
	t.Helper()
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := launch(t, s.Command())
	eventually(t, "the server serves", func() bool {
		select {
		case <-p.done:
			t.Fatalf("the server ended during its start: %v\n%s", p.err, p.log())
		default:
		}
		return s.Ready(t.Context()) == nil
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
