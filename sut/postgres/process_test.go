package postgres

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"
)

// patience bounds every wait; nothing here is expected to come near it.
const patience = 60 * time.Second

// installed finds the server or skips the test.
func installed(t testing.TB) Install {
	t.Helper()
	install, err := Find()
	if err != nil {
		t.Skipf("needs Debian's package postgresql: %v", err)
	}
	return install
}

// newServer describes a server that a test may start.
func newServer(t testing.TB, dir string) *Server {
	t.Helper()
	return New(Config{Install: installed(t), Name: "db-1", Dir: dir, Listen: net.IPv4(127, 0, 0, 1), Port: freePort(t)})
}

// copyOf copies a data directory that was stopped cleanly.
func copyOf(t testing.TB, template string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "deep", "er", "data")
	if err := os.CopyFS(dir, os.DirFS(template)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// freePort picks a port below those that the system gives to outgoing
// connections, and beside those of other packages' tests, so that nobody else takes it
// before the server does.
func freePort(t testing.TB) int {
	t.Helper()
	for range 100 {
		port := 23_000 + rand.IntN(6_000)
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

// launch starts a server without waiting for it to serve.
func launch(t testing.TB, server *Server) *process {
	t.Helper()
	p := &process{cmd: server.Command(), done: make(chan struct{})}
	stderr, err := p.cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	p.cmd.SysProcAttr.Setpgid = true
	p.cmd.SysProcAttr.Pdeathsig = syscall.SIGQUIT
	started := make(chan error)
	go func() {
		// The death signal comes when the thread ends that started the process.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		defer close(p.done)
		err := p.cmd.Start()
		started <- err
		if err != nil {
			return
		}
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			p.mu.Lock()
			p.lines = append(p.lines, lines.Text())
			p.mu.Unlock()
			server.Printed(lines.Text())
		}
		p.err = p.cmd.Wait()
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		p.kill(t)
		if t.Failed() {
			t.Log("log of the server:\n" + p.log())
		}
		// A server that was refused leaves the other one's data alone.
		if len(serversIn(server.dir)) == 0 {
			if err := server.Release(); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

// start prepares and starts a server and waits until it serves.
func start(t testing.TB, server *Server) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := server.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	p := launch(t, server)
	for {
		err := server.Ready(ctx)
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

func (p *process) pid() int { return p.cmd.Process.Pid }

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

// stop ends the server as its supervisor would.
func (p *process) stop(t testing.TB, server *Server) {
	t.Helper()
	p.signal(t, server.StopSignal())
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
}

// kill ends the server and its children at once.
func (p *process) kill(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(-p.pid(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Error(err)
	}
	_ = p.wait(t)
}

// query runs one statement on a connection of its own and scans its only row,
// if it has one to scan.
func query(t testing.TB, server *Server, sql string, args []any, into ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.url())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(ctx)
	if len(into) == 0 {
		_, err = conn.Exec(ctx, sql, args...)
	} else {
		err = conn.QueryRow(ctx, sql, args...).Scan(into...)
	}
	if err != nil {
		t.Fatalf("%s: %v", sql, err)
	}
}

// clusterState reads what the server noted about itself at its end.
func clusterState(t testing.TB, server *Server) string {
	t.Helper()
	out, err := server.command(t.Context(), "pg_controldata", server.dir).CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for line := range strings.Lines(string(out)) {
		if state, found := strings.CutPrefix(line, "Database cluster state:"); found {
			return strings.TrimSpace(state)
		}
	}
	t.Fatalf("no state in\n%s", out)
	return ""
}

// segmentExists asks the kernel for a shared memory segment.
func segmentExists(t testing.TB, id int) bool {
	t.Helper()
	text, err := os.ReadFile("/proc/sysvipc/shm")
	if err != nil {
		t.Skip(err)
	}
	for line := range strings.Lines(string(text)) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[1] == fmt.Sprint(id) {
			return true
		}
	}
	return false
}
