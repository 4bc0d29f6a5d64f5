// Package memcachedtest starts memcached for tests; each server ends with its test.
// Where there is none the test is skipped. It keeps no state.
package memcachedtest

import (
	"context"
	"net"
	"runtime"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/memcached"
)

// patience is how long a server may take to serve.
const patience = 20 * time.Second

// Process is a server that runs.
type Process struct {
	*memcached.Server
	PID   int
	ended chan struct{} // closed when it has
	kill  func()
}

// Start starts a server with a budget in bytes on a free port of loopback.
func Start(t testing.TB, maxBytes int64) *Process {
	t.Helper()
	for range 5 { // somebody else may take the port before the server does
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		port := listener.Addr().(*net.TCPAddr).Port
		_ = listener.Close()
		if p := StartAt(t, port, maxBytes); p != nil {
			return p
		}
	}
	t.Fatal("memcached found no port")
	return nil
}

// StartAt starts a server on a port; it is nil when the server ends at once, as one
// does whose port is taken.
func StartAt(t testing.TB, port int, maxBytes int64) *Process {
	t.Helper()
	install, err := memcached.Find()
	if err != nil {
		t.Skipf("needs Debian's package memcached: %v", err)
	}
	s := memcached.New(memcached.Config{Install: install, Listen: net.IPv4(127, 0, 0, 1), Port: port, MaxBytes: maxBytes, Procs: 2})
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if err := s.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	p := launch(t, s)
	for {
		err := s.Ready(ctx)
		select {
		case <-p.ended:
			return nil
		default:
		}
		if err == nil {
			t.Cleanup(p.Kill)
			return p
		}
		select {
		case <-time.After(5 * time.Millisecond):
		case <-ctx.Done():
			p.Kill()
			t.Fatalf("memcached does not serve: %v", err)
		}
	}
}

// Figures asks the server for what it has counted.
func (p *Process) Figures(t testing.TB) sut.CacheFigures {
	t.Helper()
	f, err := p.Stats(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// Kill ends the server, which has nothing to lose. It may be called again.
func (p *Process) Kill() {
	p.kill()
	<-p.ended
}

// Ended is closed when the server has ended.
func (p *Process) Ended() <-chan struct{} { return p.ended }

// launch starts a server without waiting for it to serve.
func launch(t testing.TB, s *memcached.Server) *Process {
	t.Helper()
	command := s.Command()
	command.SysProcAttr.Pdeathsig = syscall.SIGKILL
	p := &Process{Server: s, ended: make(chan struct{})}
	p.kill = func() { _ = command.Process.Kill() } // it may have ended
	started := make(chan error)
	go func() {
		// The death signal comes when the thread ends that started the process.
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
