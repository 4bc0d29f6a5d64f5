package postgres

import (
	"bufio"
	"context"
	"errors"
	"fmt"
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

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
)

// secret has characters that have a meaning in URLs, SQL, configuration files and shells.
const secret sut.Secret = `secret of the tests @:/?#%'"\$`

// testTimeout bounds every wait. No wait is expected to come near it.
const testTimeout = 60 * time.Second

// pollInterval is the time between two checks of a server.
const pollInterval = 5 * time.Millisecond

// installed returns the installed server, or skips the test if there is none.
func installed(t testing.TB) Install {
	t.Helper()
	install, err := Find()
	if err != nil {
		t.Skipf("needs Debian's package postgresql: %v", err)
	}
	return install
}

// newServer returns the description of a server on a free port.
func newServer(t testing.TB, dir string) *Server {
	t.Helper()
	free := porttest.Free(t)
	return New(Config{
		Install: installed(t), Name: "db-1", Dir: dir, Listen: free.Addr().AsSlice(), Port: int(free.Port()), Secret: secret,
	})
}

// copyOf returns a copy of a data directory that was shut down cleanly.
func copyOf(t testing.TB, template string) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "deep", "er", "data")
	if err := os.CopyFS(dir, os.DirFS(template)); err != nil {
		t.Fatal(err)
	}
	return dir
}

// process is a server that a test has started. It ends with the test.
type process struct {
	cmd  *exec.Cmd
	done chan struct{} // closed when the process has ended
	err  error         // result of Wait; valid after done

	mu    sync.Mutex
	lines []string // of the log
}

// launch starts a server and does not wait until it is ready.
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
		// The kernel sends Pdeathsig when the thread that started the process ends. So this
		// goroutine keeps its thread until the process has ended.
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
			server.HandleLogLine(lines.Text())
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
		if strings.Contains(p.log(), string(server.cfg.Secret)) || strings.Contains(p.log(), "SCRAM-SHA-256$") {
			t.Error("the log of the server contains a password")
		}
		// If another server uses the directory, its shared memory must stay.
		if len(serversIn(server.dir)) == 0 {
			if err := server.Release(); err != nil {
				t.Error(err)
			}
		}
	})
	return p
}

// start prepares and starts a server and waits until it is ready.
func start(t testing.TB, server *Server) *process {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	if err := server.Prepare(ctx); err != nil {
		t.Fatal(err)
	}
	p := launch(t, server)
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		err := server.Ready(ctx)
		if err == nil {
			return p
		}
		select {
		case <-p.done:
			t.Fatalf("the server ended before it was ready: %v\n%s", p.err, p.log())
		case <-ctx.Done():
			t.Fatalf("the server is not ready after %v: %v\n%s", testTimeout, err, p.log())
		case <-poll.C:
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

// wait waits for the end of the server and returns the result of its process.
func (p *process) wait(t testing.TB) error {
	t.Helper()
	select {
	case <-p.done:
		return p.err
	case <-time.After(testTimeout):
		t.Fatalf("the server has not ended after %v\n%s", testTimeout, p.log())
		return nil
	}
}

// stop stops the server with its stop signal.
func (p *process) stop(t testing.TB, server *Server) {
	t.Helper()
	p.signal(t, server.StopSignal())
	if err := p.wait(t); err != nil {
		t.Fatal(err)
	}
}

// kill kills the server's process group.
func (p *process) kill(t testing.TB) {
	t.Helper()
	if err := syscall.Kill(-p.pid(), syscall.SIGKILL); err != nil && !errors.Is(err, syscall.ESRCH) {
		t.Error(err)
	}
	_ = p.wait(t)
}

// query runs one statement as User on a new connection. It scans the result row into the
// given variables, if there are any.
func query(t testing.TB, server *Server, sql string, args []any, into ...any) {
	t.Helper()
	queryAs(t, server, User, sql, args, into...)
}

// queryAs is query as another role.
func queryAs(t testing.TB, server *Server, role, sql string, args []any, into ...any) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), testTimeout)
	defer cancel()
	conn, err := pgx.Connect(ctx, server.url(role))
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

// clusterState returns the cluster state in the control data of a stopped server.
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
	t.Fatalf("no cluster state in\n%s", out)
	return ""
}

// segmentExists reports whether a System V shared memory segment exists.
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
