// Package memcachedtest starts memcached servers for tests. Each server ends with its test.
// Where memcached is not installed, the test is skipped. The package keeps no state.
package memcachedtest

import (
	"context"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/memcached"
)

// readyTimeout bounds the time from the start of a server until it is ready.
const readyTimeout = 20 * time.Second

// Process is a running server.
type Process struct {
	*memcached.Server
	PID   int
	ended chan struct{} // closed when the process has ended
	kill  func()
}

// Start starts a server on a free loopback port. maxBytes is its memory limit. Without a secret, clients need none.
func Start(t testing.TB, maxBytes int64, secret sut.Secret) *Process {
	t.Helper()
	install, err := memcached.Find()
	if err != nil {
		t.Skipf("needs Debian's package memcached: %v", err)
	}
	free := porttest.Free(t)
	s := memcached.New(memcached.Config{
		Install: install, Listen: free.Addr().AsSlice(), Port: int(free.Port()), MaxBytes: maxBytes, Procs: 2,
		Secret: secret,
	})
	ctx, cancel := context.WithTimeout(context.Background(), readyTimeout)
	defer cancel()
	if err := s.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	p := launch(t, s)
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		err := s.Ready(ctx)
		if err == nil {
			t.Cleanup(p.Kill)
			return p
		}
		select {
		case <-poll.C:
		case <-p.ended:
			t.Fatal("memcached ended during its start")
		case <-ctx.Done():
			p.Kill()
			t.Fatalf("memcached is not ready after %v: %v", readyTimeout, err)
		}
	}
}

// Figures reads the server's figures.
func (p *Process) Figures(t testing.TB) sut.CacheFigures {
	t.Helper()
	f, err := p.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Kill kills the server and waits for its end. It may be called more than once.
func (p *Process) Kill() {
	p.kill()
	<-p.ended
}

// Ended returns a channel that is closed when the server has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// launch starts a server and does not wait until it is ready.
func launch(t testing.TB, s *memcached.Server) *Process {
	t.Helper()
	command := s.Command()
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	p := &Process{Server: s, ended: make(chan struct{})}
	p.kill = func() { _ = command.Process.Kill() } // fails if it has ended
	started := make(chan error)
	go func() {
		// The kernel sends Pdeathsig when the thread that started the process ends. So this
		// goroutine keeps its thread until the process has ended.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := command.Start()
		started <- err
		if err == nil {
			_ = command.Wait()
			close(p.ended)
		}
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	p.PID = command.Process.Pid
	return p
}
