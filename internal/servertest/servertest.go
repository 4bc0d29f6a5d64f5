// Package servertest runs native servers in the tests of the packages that configure them. A server ends with its test,
// and with the process of the test. The log of a failed test has the log of the server.
package servertest

import (
	"bufio"
	"context"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/polltest"
)

// Timeout bounds every wait. A test that passes stays far below it.
const Timeout = time.Minute

// logPause is the time in which the last lines of an ended server are read. Workers of a killed server keep its log
// open.
const logPause = time.Second

// Eventually polls until a condition holds. It ends the test after Timeout.
func Eventually(t testing.TB, what string, holds func() bool) {
	t.Helper()
	polltest.Eventually(t, Timeout, 5*time.Millisecond, what, holds)
}

// Server is a native server that a package configures.
type Server interface {
	Prepare(ctx context.Context) error
	Command() *exec.Cmd
	Ready(ctx context.Context) error // nil = it serves
}

// Process is a started server.
type Process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // exit error; valid after done

	mu    sync.Mutex
	lines []string // of the log
}

// Start prepares and starts a server, and waits until it serves. handle gets each line of its log; nil = nobody does.
func Start(t testing.TB, s Server, handle func(line string) bool) *Process {
	t.Helper()
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	p := Launch(t, s.Command(), handle)
	Eventually(t, "the server serves", func() bool {
		select {
		case <-p.done:
			t.Fatalf("the server ended during its start: %v\n%s", p.err, p.Log())
		default:
		}
		return s.Ready(t.Context()) == nil
	})
	return p
}

// Launch starts a command and does not wait until it serves. handle is as for Start.
func Launch(t testing.TB, cmd *exec.Cmd, handle func(line string) bool) *Process {
	t.Helper()
	p := &Process{cmd: cmd, done: make(chan struct{})}
	stderr, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM // a server that is killed would leave its workers
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
			p.read(bufio.NewScanner(stderr), handle)
		}()
		state, err := cmd.Process.Wait()
		if p.err = err; err == nil && !state.Success() {
			p.err = &exec.ExitError{ProcessState: state}
		}
		select {
		case <-read:
		case <-time.After(logPause):
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Signal(syscall.SIGTERM) // fails if it has ended
		_ = p.Wait(t)
		if t.Failed() {
			t.Log("log of the server:\n" + p.Log())
		}
	})
	return p
}

// read keeps the lines of a log until it ends.
func (p *Process) read(log *bufio.Scanner, handle func(line string) bool) {
	for log.Scan() {
		p.mu.Lock()
		p.lines = append(p.lines, log.Text())
		p.mu.Unlock()
		if handle != nil {
			handle(log.Text())
		}
	}
}

// Log returns the log of the server until now.
func (p *Process) Log() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return strings.Join(p.lines, "\n")
}

// PID is the process ID of the server.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the server.
func (p *Process) Signal(t testing.TB, signal os.Signal) {
	t.Helper()
	if err := p.cmd.Process.Signal(signal); err != nil {
		t.Fatal(err)
	}
}

// Wait waits until the server ends and returns its exit error.
func (p *Process) Wait(t testing.TB) error {
	t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(Timeout):
		t.Fatalf("the server did not end within %v\n%s", Timeout, p.Log())
		return nil
	}
}
