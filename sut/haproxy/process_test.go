package haproxy_test

import (
	"bufio"
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/haproxy"
)

// patience bounds every wait; nothing here is expected to come near it.
const patience = 60 * time.Second

// haproxyInstalled finds the server or skips the test.
func haproxyInstalled(t testing.TB) haproxy.Install {
	t.Helper()
	install, err := haproxy.Find()
	if err != nil {
		t.Skipf("needs Debian's package haproxy: %v", err)
	}
	return install
}

// newHAProxy describes a server on a free port, in a directory of its own.
func newHAProxy(t testing.TB, install haproxy.Install, cfg sut.Balancing) *haproxy.Server {
	t.Helper()
	cfg.Node = "lb-1"
	return haproxy.New(haproxy.Config{
		Balancing: cfg, Install: install, Dir: t.TempDir(), Listen: net.IPv4(127, 0, 0, 1), Port: freePort(t),
	})
}

// freePort picks a port below those that the system gives to outgoing
// connections, and beside those of balancetest's hosts, so that nobody else takes it
// before the server does.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 10_000 + rand.IntN(7_000)
		if listener, err := net.Listen("tcp4", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			_ = listener.Close()
			return port
		}
	}
	t.Fatal("no free port")
	return 0
}

// process is a server that a test started; it ends with the test.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when it has ended
	err  error         // how it ended; read it after done

	mu    sync.Mutex
	lines []string // of its log
}

// launch starts a command without waiting for it to serve.
func launch(t testing.TB, cmd *exec.Cmd) *process {
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
		// The death signal comes when the thread ends that started the process.
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

// startHAProxy prepares and starts a server and waits until it serves.
func startHAProxy(t testing.TB, h *haproxy.Server) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := h.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	p := launch(t, h.Command())
	for {
		err := h.Ready(ctx)
		if err == nil {
			return p
		}
		select {
		case <-p.done:
			t.Fatalf("server ended before it served: %v\n%s", p.err, p.log())
		case <-ctx.Done():
			t.Fatalf("server never served: %v\n%s", err, p.log())
		case <-time.After(5 * time.Millisecond):
		}
	}
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

// wait returns how the server ended.
func (p *process) wait(t testing.TB) error {
	t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(patience):
		t.Fatalf("server does not end\n%s", p.log())
		return nil
	}
}
