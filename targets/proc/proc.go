// Package proc runs one child process. It starts the child, waits until it is ready or
// exits, keeps the tail of its log, stops it within a timeout and reports how it ended.
//
// The child must do this: read one document from standard input, print one line on standard
// output when it is ready, log to standard error, and exit when standard input closes. The
// last rule prevents orphans: when the parent dies for any reason, the kernel closes the
// pipe. The parent-death signal cannot be used: it is sent when the thread that forked
// ends, and the Go runtime may end threads at any time.
//
// Every child leads its own process group. When the child dies, the rest of the group is
// killed before the child is reaped. Without this order, the group id could belong to
// unrelated processes by then. targets/budget kills processes that left the group (a
// server that called setsid).
//
// The order of calls is Start, then Stop or Kill, then Wait. All methods of a Process may
// be called concurrently, and after its death. The package never restarts a child and
// does not parse the document or the ready line.
package proc

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxReadyLine bounds the ready line, in bytes.
	maxReadyLine = 64 << 10
	// tailLines is the number of log lines kept in memory.
	tailLines = 20
	// logGrace is how long the log of a dead child is still read. Reading takes that long
	// only if a process that left the group keeps the pipe open.
	logGrace = 500 * time.Millisecond
)

// Spec describes a child to start.
type Spec struct {
	Name  string   // name of the node, for errors
	Path  string   // executable
	Args  []string // without the name of the program
	Env   []string // nil = this process's environment
	Stdin []byte   // the document; standard input stays open after it

	// Log receives standard error, and standard output after the ready line. Only one
	// goroutine writes to it at a time.
	Log io.Writer

	ReadyTimeout time.Duration
	StopTimeout  time.Duration // from SIGTERM to SIGKILL

	// Launch starts the command, for example inside a cgroup (budget.Leaf.Start).
	Launch func(*exec.Cmd) error
}

// Process is a child that was ready once.
type Process struct {
	spec  Spec
	cmd   *exec.Cmd
	stdin *os.File
	log   *logTail

	firstLine chan error    // gets the result of reading the ready line, once
	ready     []byte        // the ready line, set before firstLine gets the result
	done      chan struct{} // closed when exit is set
	exit      Exit

	mu   sync.Mutex
	dead bool // guarded by mu: if true, the pid may belong to another process
}

// Start starts the child and waits until it is ready. If the child exits before it is
// ready or is not ready within ReadyTimeout, Start returns a *StartError. On any error,
// also when ctx ends, the process group is killed and the child reaped before Start returns.
func Start(ctx context.Context, spec Spec) (*Process, error) {
	if err := ctx.Err(); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, context.Cause(ctx))
	}
	p := &Process{
		spec: spec, log: &logTail{sink: spec.Log, keep: tailLines},
		firstLine: make(chan error, 1), done: make(chan struct{}),
	}
	if err := p.launch(); err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	reason, err := p.awaitReady(ctx)
	if reason == "" && err == nil {
		return p, nil
	}
	p.Kill()
	<-p.done
	if err != nil {
		return nil, fmt.Errorf("start %s: %w", spec.Name, err)
	}
	return nil, &StartError{Name: spec.Name, Reason: reason, Exit: p.exit}
}

// launch forks the child and starts the goroutines that serve its pipes. All of them end
// when the child ends.
func (p *Process) launch() error {
	stdin, document, err := os.Pipe()
	if err != nil {
		return err
	}
	output, stdout, err := os.Pipe()
	if err != nil {
		stdin.Close()
		document.Close()
		return err
	}
	p.cmd = exec.Command(p.spec.Path, p.spec.Args...)
	p.cmd.Env, p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = p.spec.Env, stdin, stdout, p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	p.cmd.WaitDelay = logGrace
	err = p.spec.Launch(p.cmd)
	stdin.Close()
	stdout.Close()
	if err != nil {
		document.Close()
		output.Close()
		return err
	}
	p.stdin = document
	// A child that does not read its document must not block Start. The write ends when
	// stdin is closed.
	go func() { _, _ = p.stdin.Write(p.spec.Stdin) }()
	go p.reap(output)
	return nil
}

// readStdout reads the ready line from standard output and logs everything after it.
func (p *Process) readStdout(stdout io.Reader) {
	r := bufio.NewReaderSize(stdout, maxReadyLine)
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		err = fmt.Errorf("the ready line is longer than %d bytes", maxReadyLine)
	case err != nil:
		err = errors.New("the process closed its standard output")
	}
	p.ready = bytes.Clone(line)
	p.firstLine <- err
	_, _ = io.Copy(p.log, r)
}

// reap waits until the child is dead and then kills the rest of its group. Only after that
// it reaps the child, which frees the pid.
func (p *Process) reap(stdout *os.File) {
	var output sync.WaitGroup
	output.Go(func() { p.readStdout(stdout) })
	for {
		err := unix.Waitid(unix.P_PID, p.cmd.Process.Pid, nil, unix.WEXITED|unix.WNOWAIT, nil)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	p.mu.Lock()
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
	p.dead = true
	p.mu.Unlock()

	p.CloseStdin()
	_ = stdout.SetReadDeadline(time.Now().Add(logGrace))
	_ = p.cmd.Wait() // the result is in ProcessState
	output.Wait()
	stdout.Close()
	p.exit = exitOf(p.cmd.ProcessState.Sys().(syscall.WaitStatus), p.log.lines())
	close(p.done)
}

// awaitReady waits until the child is ready or exits. It returns why the child did not
// become ready, or the cause of ctx if ctx ended first.
func (p *Process) awaitReady(ctx context.Context) (reason string, err error) {
	timeout := time.NewTimer(p.spec.ReadyTimeout)
	defer timeout.Stop()
	var unready error
	select {
	case unready = <-p.firstLine:
	case <-ctx.Done():
		return "", context.Cause(ctx)
	case <-timeout.C:
		return fmt.Sprintf("not ready after %v", p.spec.ReadyTimeout), nil
	}
	if unready == nil {
		return "", nil
	}
	// Standard output also closes when the child dies. The cause of death is more useful
	// than the closed pipe, so wait for it.
	select {
	case <-p.done:
		return p.exit.Cause + " before it was ready", nil
	case <-time.After(logGrace):
		return "not ready: " + unready.Error(), nil
	case <-ctx.Done():
		return "", context.Cause(ctx)
	}
}

// Ready returns the first line that the child printed, with its line end.
func (p *Process) Ready() []byte { return p.ready }

// PID returns the process id of the child.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the child only. It does nothing after the child's death.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.signal(p.cmd.Process.Pid, sig)
}

// SignalGroup sends a signal to all processes of the child's process group.
func (p *Process) SignalGroup(sig syscall.Signal) error {
	return p.signal(-p.cmd.Process.Pid, sig)
}

func (p *Process) signal(pid int, sig syscall.Signal) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.dead {
		return nil
	}
	if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
		return fmt.Errorf("send %s to %s: %w", unix.SignalName(sig), p.spec.Name, err)
	}
	return nil
}

// CloseStdin closes the child's standard input, which tells the child to exit.
func (p *Process) CloseStdin() { p.stdin.Close() }

// Kill sends SIGKILL to the whole process group and does not wait.
func (p *Process) Kill() { _ = p.SignalGroup(syscall.SIGKILL) }

// Stop sends SIGTERM, so that the child drains. After StopTimeout, or when ctx ends, Stop
// closes standard input and kills the process group. Standard input stays open until then,
// because closing it makes the child exit at once and would interrupt the drain. A child
// that was paused with SIGSTOP is continued first.
func (p *Process) Stop(ctx context.Context) Exit {
	_ = p.Signal(syscall.SIGTERM)
	_ = p.SignalGroup(syscall.SIGCONT)
	bound := time.NewTimer(p.spec.StopTimeout)
	defer bound.Stop()
	select {
	case <-p.done:
		return p.exit
	case <-bound.C:
	case <-ctx.Done():
	}
	p.CloseStdin()
	p.Kill()
	return p.Wait()
}

// Done returns a channel that is closed when the child is dead, its group is killed and
// its log is read to the end.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for Done and returns how the child ended.
func (p *Process) Wait() Exit {
	<-p.done
	return p.exit
}
