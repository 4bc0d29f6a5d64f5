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

// Server is a native server that a package describes and that is started here.
type Server interface {
	Prepare(ctx context.Context) error // files and ownership
	Command() *exec.Cmd                // not started
	Ready(ctx context.Context) error   // one probe, nil when it serves
	StopSignal() os.Signal             // asks it to end in order
	Version(ctx context.Context) (string, error)
	Address() string
}

// How long a native server may take to serve, and how often it is asked.
const (
	nativeStart = 30 * time.Second
	nativePoll  = 5 * time.Millisecond
)

// Beside runs something as long as a component lives.
func (c Component) Beside(watch func(context.Context)) Component {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		watch(ctx)
	}()
	stop := c.Stop
	c.Stop = func(ctx context.Context) error {
		cancel()
		<-done
		return stop(ctx)
	}
	return c
}

// marks are the variables by which whoever runs nodes knows the processes of each again.
// A native server has an environment of its own, and is of its node all the same.
func marks(environment []string) []string {
	return slices.DeleteFunc(environment, func(v string) bool { return !strings.HasPrefix(v, "STAGEBENCH_") })
}

// StartNative starts a described server as a child that gets the signal death when this
// process dies, and waits until it serves or exits.
func (n Node) StartNative(ctx context.Context, s Server, death syscall.Signal) (Component, error) {
	if err := s.Prepare(ctx); err != nil {
		return Component{}, err
	}
	cmd := s.Command()
	cmd.Env = append(cmd.Env, marks(os.Environ())...)
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = death
	reader, writer := io.Pipe()
	cmd.Stdout, cmd.Stderr = writer, writer
	go n.relay(reader, s)
	started, exited := make(chan error, 1), make(chan error, 1)
	go func() {
		// The death signal comes when the parent thread ends, so the thread that
		// started the child must live as long as the child does.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			err = cmd.Wait()
			_ = writer.Close() // a pipe's writer never fails to close
			exited <- fmt.Errorf("%s ended: %w", filepath.Base(cmd.Path), orExited(err))
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
	died := make(chan error, 3) // of the server, of who watches it, and of the admin address
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

// relay logs what the server prints. One that prints more than words for people
// has a Printed, which reports whether it has logged the line itself.
func (n Node) relay(r io.Reader, s Server) {
	printed := func(string) bool { return false }
	if own, has := s.(interface{ Printed(line string) bool }); has {
		printed = own.Printed
	}
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		if !printed(lines.Text()) {
			n.Log.Info(lines.Text(), "source", "server")
		}
	}
	_, _ = io.Copy(io.Discard, r) // after a line that is too long: the server must not block
}

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
			exited <- death // for the stop that follows
			return death
		case <-ctx.Done():
			return fmt.Errorf("not ready within %v: %w", nativeStart, err)
		}
	}
}

// stopNative asks the server to end and kills it when the time is over.
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

// orExited names the end of a server that ended without an error: it was not
// asked to.
func orExited(err error) error {
	if err == nil {
		return errors.New("exit status 0, but nobody had asked it to")
	}
	return err
}
