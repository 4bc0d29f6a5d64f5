// Package proc runs one supervised child process: it starts it, waits for
// ready or exit, keeps its log tail, stops it within a bound and says what it
// died of.
//
// The contract with the child: it reads one document from its standard input,
// which then stays open for as long as the child shall live; it prints one
// line on standard output when it is ready; it logs to standard error; it dies
// when its standard input closes. The last point is what makes orphans
// impossible: however the parent dies, the kernel closes the pipe. The
// parent-death signal is not used, for it follows the thread that forked, and
// Go ends threads when it likes.
//
// Every child leads a process group of its own. When it dies, whatever is left
// of the group is killed before the child is reaped, so a group id is never
// used after it could have been given to somebody else. Processes that leave
// the group (a server that calls setsid) are the business of targets/budget.
//
// The order of calls is Start, then Stop (or Kill) and Wait. All methods of a
// Process may be called concurrently and after its death. The package never
// restarts anything and never reads the documents it carries.
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
	// maxReadyLine bounds the ready document.
	maxReadyLine = 64 << 10
	// tailLines is how many lines of the log are kept in memory.
	tailLines = 20
	// logGrace is how long the log of a dead child is still read. It only runs
	// out when a process that left the group keeps the pipe open.
	logGrace = 500 * time.Millisecond
)

// Spec says what to start and how long to wait for it.
type Spec struct {
	Name  string   // of the node, in errors
	Path  string   // executable
	Args  []string // without the name of the program
	Env   []string // nil = this process's environment
	Stdin []byte   // the document; standard input stays open after it

	// Log receives standard error, and what follows the ready line on standard
	// output. It is written by one goroutine at a time.
	Log io.Writer

	ReadyTimeout time.Duration
	StopTimeout  time.Duration // from SIGTERM to SIGKILL

	// Launch starts the command; a budget's leaf does so inside its group.
	Launch func(*exec.Cmd) error
}

// Process is a child that became ready.
type Process struct {
	spec  Spec
	cmd   *exec.Cmd
	stdin *os.File
	log   *logTail

	firstLine chan error    // gets the outcome of reading the ready line, once
	ready     []byte        // set by then
	done      chan struct{} // closed when exit is set
	exit      Exit

	mu   sync.Mutex
	dead bool // guarded by mu: once true, the pid may soon belong to somebody else
}

// Start starts the child and waits until it is ready. When it exits first,
// takes longer than ReadyTimeout or ctx ends, the child is killed with its
// process group and reaped before Start returns. A child that died or was too
// slow is reported as a *StartError.
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

// launch forks the child and starts the goroutines that serve its pipes; all
// of them end with the child.
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
	// A child that does not read its document must not hold us: the write ends
	// when stdin is closed.
	go func() { _, _ = p.stdin.Write(p.spec.Stdin) }()
	go p.reap(output)
	return nil
}

// readStdout takes the ready line off standard output and logs what follows.
func (p *Process) readStdout(stdout io.Reader) {
	r := bufio.NewReaderSize(stdout, maxReadyLine)
	line, err := r.ReadSlice('\n')
	switch {
	case errors.Is(err, bufio.ErrBufferFull):
		err = fmt.Errorf("its ready line is longer than %d bytes", maxReadyLine)
	case err != nil:
		err = errors.New("it closed its standard output")
	}
	p.ready = bytes.Clone(line)
	p.firstLine <- err
	_, _ = io.Copy(p.log, r)
}

// reap waits for the child's death, kills the rest of its group, and only then
// lets the kernel forget the pid. Meanwhile it has standard output read.
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
	_ = p.cmd.Wait() // what it died of is in ProcessState
	output.Wait()
	stdout.Close()
	p.exit = exitOf(p.cmd.ProcessState.Sys().(syscall.WaitStatus), p.log.lines())
	close(p.done)
}

// awaitReady waits for ready or exit, whichever is first. It returns the reason
// why the child did not become ready, or the error that ended the waiting.
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
	// Standard output also closes on death, and then the cause of death says
	// more than the closed pipe does.
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

// PID is the process id of the child.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the child alone. It does nothing after its death.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.signal(p.cmd.Process.Pid, sig)
}

// SignalGroup sends a signal to the child and all that is in its process
// group.
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

// CloseStdin closes the child's standard input, which tells it to die.
func (p *Process) CloseStdin() { p.stdin.Close() }

// Kill sends SIGKILL to the whole process group and does not wait.
func (p *Process) Kill() { _ = p.SignalGroup(syscall.SIGKILL) }

// Stop ends the child: SIGTERM, so that it drains, and after StopTimeout, or
// when ctx ends, standard input closes and the whole process group is killed.
// Standard input stays open until then, because its closing means "die now"
// and would cut the drain short. A stopped (SIGSTOP) child is continued first.
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

// Done is closed when the child is dead, its group is killed and its log is
// read to the end.
func (p *Process) Done() <-chan struct{} { return p.done }

// Wait waits for Done and says how the child ended.
func (p *Process) Wait() Exit {
	<-p.done
	return p.exit
}
