package process

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Server describes a native server. StartNative starts it.
type Server interface {
	Prepare(ctx context.Context) error           // writes its files and sets their owner
	Command() *exec.Cmd                          // the command, not started
	Ready(ctx context.Context) error             // probes the server once; nil = it serves
	StopSignal() os.Signal                       // the signal for an orderly stop
	Version(ctx context.Context) (string, error) // the version that the server reports
	Address() string                             // host:port of its clients
}

// nativeStart bounds the start of a native server. nativePoll is the time between two
// probes during the start.
const (
	nativeStart = 30 * time.Second
	nativePoll  = 5 * time.Millisecond
)

// WithBackground returns a component that runs f in a goroutine. Stop ends the context of
// f and waits for f, as long as its own context permits, before it stops the component.
func (c Component) WithBackground(f func(context.Context)) Component {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		f(ctx)
	}()
	stop := c.Stop
	c.Stop = func(ctx context.Context) error {
		cancel()
		select {
		case <-done:
		case <-ctx.Done():
		}
		return stop(ctx)
	}
	return c
}

// nodeVariables returns the environment variables that mark the processes of a node. The
// harness finds a node's processes by them. A native server does not inherit the
// environment, so it must get these variables.
func nodeVariables(environment []string) []string {
	return slices.DeleteFunc(environment, func(v string) bool { return !strings.HasPrefix(v, "STAGEBENCH_") })
}

// StartNative starts a native server as a child process and waits until it serves or
// exits. The child gets the signal death when this process dies.
func (n Node) StartNative(ctx context.Context, s Server, death syscall.Signal) (Component, error) {
	if err := s.Prepare(ctx); err != nil {
		return Component{}, err
	}
	cmd := s.Command()
	cmd.Env = append(cmd.Env, nodeVariables(os.Environ())...)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = death
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	go n.relay(reader, s)
	started, exited := make(chan error, 1), make(chan error, 1)
	go func() {
		// The kernel sends the death signal when the thread that started the child
		// ends. So this thread must live as long as the child.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			err = cmd.Wait()
			_ = writer.Close() // never fails for a pipe
			exited <- fmt.Errorf("%s ended: %w", filepath.Base(cmd.Path), exitError(err))
		}
	}()
	if err := <-started; err != nil {
		return Component{}, err
	}
	stop := func(ctx context.Context) error { return stopNative(ctx, cmd, s.StopSignal(), exited) }
	if err := awaitNative(ctx, s, exited); err != nil {
		return Component{}, errors.Join(err, stop(ctx))
	}
	version, err := s.Version(ctx)
	if err != nil {
		return Component{}, errors.Join(err, stop(ctx))
	}
	died := make(chan error, 3) // one each for the server, a background function and the admin address
	relayed := make(chan error, 1)
	go func() {
		err := <-exited
		died <- err
		relayed <- err
	}()
	return Component{
		Ready: sut.Ready{Address: s.Address(), Version: version, PIDs: []int{cmd.Process.Pid}},
		Died:  died,
		Stop:  func(ctx context.Context) error { return stopNative(ctx, cmd, s.StopSignal(), relayed) },
	}, nil
}

// relay logs the lines that the server prints. A server may have a method HandleLogLine that
// takes a line and reports whether it logged the line itself.
func (n Node) relay(r io.Reader, s Server) {
	logged := func(string) bool { return false }
	if logger, ok := s.(interface{ HandleLogLine(line string) bool }); ok {
		logged = logger.HandleLogLine
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if !logged(lines.Text()) {
			n.Log.Info(lines.Text(), "source", "server")
		}
	}
	// The scanner stops at a line that is too long. A full pipe would block the server.
	_, _ = io.Copy(io.Discard, r)
}

// awaitNative waits until the server serves or exits.
func awaitNative(ctx context.Context, s Server, exited chan error) error {
	ctx, cancel := context.WithTimeout(ctx, nativeStart)
	defer cancel()
	poll := time.NewTicker(nativePoll)
	defer poll.Stop()
	for {
		err := s.Ready(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-poll.C:
		case death := <-exited:
			exited <- death // the caller's stop needs it
			return death
		case <-ctx.Done():
			return fmt.Errorf("the native server did not become ready within %v: %w", nativeStart, err)
		}
	}
}

// stopNative sends the stop signal and waits for the exit. It kills the server when ctx
// ends.
func stopNative(ctx context.Context, cmd *exec.Cmd, signal os.Signal, exited <-chan error) error {
	if err := cmd.Process.Signal(signal); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return err
	}
	select {
	case <-exited:
		return nil
	case <-ctx.Done():
		err := cmd.Process.Kill()
		<-exited
		if errors.Is(err, os.ErrProcessDone) {
			return nil
		}
		return errors.Join(ctx.Err(), err)
	}
}

// exitError returns the error of an exit that was not requested, also for exit status 0.
func exitError(err error) error {
	if err == nil {
		return errors.New("exit status 0 without a stop signal")
	}
	return err
}
