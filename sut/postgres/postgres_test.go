package postgres

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"golang.org/x/sys/unix"
)

// TestServer creates a template once, as the harness does. Each subtest starts a server on
// a copy of it.
func TestServer(t *testing.T) {
	t.Parallel()
	template := newServer(t, filepath.Join(t.TempDir(), "template"))
	start(t, template).stop(t, template)
	for _, test := range []struct {
		name string
		run  func(t *testing.T, template string)
	}{
		{"settings", testSettings},
		{"the server never runs as root", testNeverRunsAsRoot},
		{"the server stops cleanly with clients connected", testStopsCleanly},
		{"a killed server restarts with all commits", testKill},
		{"a killed server restarts when its process id was reused", testReusedProcessID},
		{"a second server on the directory is refused", testSecondServer},
		{"copies are independent", testCopies},
		{"release removes the shared memory", testRelease},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, template.dir)
		})
	}
}

func testSettings(t *testing.T, template string) {
	server := newServer(t, copyOf(t, template))
	start(t, server)

	var got []string
	for _, setting := range []string{
		"server_encoding", "lc_collate", "lc_ctype", "lc_messages", "data_checksums",
		"fsync", "synchronous_commit", "full_page_writes", "jit", "max_connections",
		"superuser_reserved_connections", "shared_buffers",
		"unix_socket_directories", "listen_addresses", "autovacuum", "log_destination",
		"logging_collector", "max_parallel_workers_per_gather", "cluster_name", "timezone",
	} {
		var value string
		queryAs(t, server, nodeUser, "SELECT current_setting($1)", []any{setting}, &value)
		got = append(got, setting+"="+value)
	}
	want := []string{
		"server_encoding=UTF8", "lc_collate=C", "lc_ctype=C", "lc_messages=C", "data_checksums=on",
		"fsync=on", "synchronous_commit=on", "full_page_writes=on", "jit=off", "max_connections=100",
		"superuser_reserved_connections=0", "shared_buffers=32MB",
		"unix_socket_directories=", "listen_addresses=" + server.cfg.Listen.String(),
		"autovacuum=on", "log_destination=stderr",
		"logging_collector=off", "max_parallel_workers_per_gather=0", "cluster_name=db-1", "timezone=UTC",
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error("settings (-want +got):\n" + diff)
	}
	var user, database string
	query(t, server, "SELECT current_user, current_database()", nil, &user, &database)
	if user != User || database != Database {
		t.Errorf("connected as %s to %s, want %s to %s", user, database, User, Database)
	}
	version, err := server.Version(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var running string
	query(t, server, "SHOW server_version", nil, &running)
	if !strings.HasPrefix(running, version) {
		t.Errorf("Version() = %q, the server reports %q", version, running)
	}
}

func testNeverRunsAsRoot(t *testing.T, template string) {
	if os.Geteuid() != 0 {
		t.Skip("only for root: another user runs the server itself")
	}
	server := newServer(t, copyOf(t, template))
	process := start(t, server)
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", process.pid()))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(status)) {
		if fields := strings.Fields(line); fields[0] == "Uid:" || fields[0] == "Gid:" {
			for _, id := range fields[1:] {
				if id == "0" {
					t.Errorf("the server runs as root: %s", strings.TrimSpace(line))
				}
			}
		}
	}
}

func testStopsCleanly(t *testing.T, template string) {
	server := newServer(t, copyOf(t, template))
	process := start(t, server)
	idle, err := pgx.Connect(t.Context(), server.url(User))
	if err != nil {
		t.Fatal(err)
	}
	defer idle.Close(context.Background())

	process.signal(t, server.StopSignal())
	if err := process.wait(t); err != nil {
		t.Errorf("server exited with %v, want 0", err)
	}
	if state := clusterState(t, server); state != "shut down" {
		t.Errorf("the cluster state is %q, want %q", state, "shut down")
	}
	if err := server.Release(); err != nil {
		t.Errorf("release after a clean stop: %v", err)
	}
}

func testKill(t *testing.T, template string) {
	server := newServer(t, copyOf(t, template))
	process := start(t, server)
	query(t, server, "CREATE TABLE t (n bigint PRIMARY KEY)", nil)
	for n := range 50 {
		query(t, server, "INSERT INTO t VALUES ($1)", []any{n})
	}

	// A kill of the whole process group simulates the loss of a host. After a kill of the
	// postmaster alone, its children end a moment later.
	for _, kill := range []func(pid int) error{
		func(pid int) error { return syscall.Kill(-pid, syscall.SIGKILL) },
		func(pid int) error { return syscall.Kill(pid, syscall.SIGKILL) },
	} {
		if err := kill(process.pid()); err != nil {
			t.Fatal(err)
		}
		if err := process.wait(t); err == nil {
			t.Fatal("a killed server exited with status 0")
		}
		if _, err := os.Stat(filepath.Join(server.dir, lockName)); err != nil {
			t.Fatalf("want the lock file of a killed server to remain: %v", err)
		}
		process = start(t, server)
		var count int
		query(t, server, "SELECT count(*) FROM t", nil, &count)
		if count != 50 {
			t.Fatalf("%d rows after a kill, want 50", count)
		}
	}
}

func testReusedProcessID(t *testing.T, template string) {
	server := newServer(t, copyOf(t, template))
	process := start(t, server)
	lockFile := filepath.Join(server.dir, lockName)
	text, err := os.ReadFile(lockFile)
	if err != nil {
		t.Fatal(err)
	}
	process.signal(t, server.StopSignal())
	if err := process.wait(t); err != nil {
		t.Fatal(err)
	}

	// The process must belong to the server's user: a server ignores processes of others.
	other := server.command(t.Context(), "postgres")
	other.Path, other.Args = "/bin/sleep", []string{"sleep", "600"}
	if err := other.Start(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		_ = other.Process.Kill()
		_ = other.Wait()
	}()
	_, rest, _ := bytes.Cut(text, []byte("\n"))
	stale := fmt.Appendf(nil, "%d\n%s", other.Process.Pid, rest)
	if err := os.WriteFile(lockFile, stale, 0o600); err != nil {
		t.Fatal(err)
	}
	start(t, server)
}

func testSecondServer(t *testing.T, template string) {
	dir := copyOf(t, template)
	first := newServer(t, dir)
	second := newServer(t, dir)
	if err := second.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	process := start(t, first)

	// The second server was prepared before the first one ran. So the server itself refuses.
	late := launch(t, second)
	if err := late.wait(t); err == nil {
		t.Error("a second server on the same directory exited with status 0")
	}
	if want := "lock file"; !strings.Contains(late.log(), want) {
		t.Errorf("the log of the second server does not contain %q:\n%s", want, late.log())
	}

	err := second.Prepare(t.Context())
	if err == nil {
		t.Fatal("Prepare() = nil for a directory in use")
	}
	if want := fmt.Sprintf("process %d\nstop that server", process.pid()); !strings.Contains(err.Error(), want) {
		t.Errorf("error %q, want one with %q", err, want)
	}
	if err := first.Ready(t.Context()); err != nil {
		t.Errorf("the first server is not ready any more: %v", err)
	}
	// Ready must not accept another server on the same port, even if a stale lock file says
	// that the server is ready.
	third := New(first.cfg)
	third.cfg.Dir = copyOf(t, template)
	if err := third.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(first.dir, lockName))
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(third.dir, lockName), text, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := third.Ready(t.Context()); err == nil || !strings.Contains(err.Error(), "choose another port") {
		t.Errorf("Ready() = %v for the port of another server", err)
	}
	if err := first.Release(); err == nil {
		t.Error("Release() = nil for a running server")
	}
}

func testCopies(t *testing.T, template string) {
	first := newServer(t, copyOf(t, template))
	process := start(t, first)
	query(t, first, "CREATE TABLE t (text text)", nil)
	query(t, first, "INSERT INTO t VALUES ('template')", nil)
	process.stop(t, first)

	servers := []*Server{first, newServer(t, copyOf(t, first.dir))}
	for _, server := range servers {
		start(t, server)
	}
	query(t, servers[0], "INSERT INTO t VALUES ('copy')", nil)
	for i, want := range []int{2, 1} {
		var count int
		query(t, servers[i], "SELECT count(*) FROM t", nil, &count)
		if count != want {
			t.Errorf("copy %d has %d rows, want %d", i+1, count, want)
		}
	}
}

func TestInterruptedPrepareLeavesNothing(t *testing.T) {
	t.Parallel()
	parent := t.TempDir()
	server := newServer(t, filepath.Join(parent, "data"))
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		// The directory has files as soon as initdb runs.
		for ctx.Err() == nil {
			if entries, _ := os.ReadDir(filepath.Join(parent, "data.new")); len(entries) > 0 {
				cancel()
			}
			runtime.Gosched()
		}
	}()
	err := server.Prepare(ctx)
	cancel()
	<-stopped
	if err == nil {
		t.Fatal("Prepare() = nil after an interruption")
	}
	var found []string
	if err := filepath.WalkDir(parent, func(path string, _ os.DirEntry, err error) error {
		found = append(found, strings.TrimPrefix(path, parent))
		return err
	}); err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff([]string{"", "/data"}, found); diff != "" {
		t.Error("files after an interruption (-want +got):\n" + diff)
	}
	start(t, server)
}

// A killed Prepare leaves a temporary directory and a shared memory segment. The next
// Prepare must remove both, but not a segment that another process has created.
func TestPrepareAfterKilledPrepare(t *testing.T) {
	t.Parallel()
	id, err := unix.SysvShmGet(unix.IPC_PRIVATE, 56, unix.IPC_CREAT|0o600)
	if err != nil {
		t.Skip(err)
	}
	foreign, err := unix.SysvShmGet(unix.IPC_PRIVATE, 56, unix.IPC_CREAT|0o600)
	if err != nil {
		t.Skip(err)
	}
	defer unix.SysvShmCtl(foreign, unix.IPC_RMID, nil)
	if err := (lock{pid: os.Getpid() + 1, segment: foreign}).removeSegment(); err != nil || !segmentExists(t, foreign) {
		t.Errorf("segment %d of another process exists: %v, %v", foreign, segmentExists(t, foreign), err)
	}
	server := newServer(t, filepath.Join(t.TempDir(), "data"))
	tempDir := server.cfg.Dir + ".new"
	if err := os.Mkdir(tempDir, 0o700); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"PG_VERSION": "15\n",
		lockName:     fmt.Sprintf("-%d\n\n\n\n\n\n 1234 %d\n", os.Getpid(), id),
	} {
		if err := os.WriteFile(filepath.Join(tempDir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	start(t, server)
	if segmentExists(t, id) {
		t.Errorf("shared memory segment %d still exists", id)
	}
}

func testRelease(t *testing.T, template string) {
	server := newServer(t, copyOf(t, template))
	process := start(t, server)
	lock, err := readLock(server.dir)
	if err != nil {
		t.Fatal(err)
	}
	if !segmentExists(t, lock.segment) {
		t.Fatalf("no shared memory segment %d while the server runs", lock.segment)
	}
	process.kill(t)
	if err := server.Release(); err != nil {
		t.Fatal(err)
	}
	if segmentExists(t, lock.segment) {
		t.Errorf("shared memory segment %d still exists", lock.segment)
	}
	if err := server.Release(); err != nil {
		t.Errorf("second release: %v", err)
	}
	process = start(t, server)
	if lock, err = readLock(server.dir); err != nil {
		t.Fatal(err)
	}
	system := filepath.Dir(filepath.Dir(server.dir))
	if err := ReleaseAll(system); err != nil || !segmentExists(t, lock.segment) {
		t.Errorf("the segment of a running server exists: %v, %v", segmentExists(t, lock.segment), err)
	}
	process.kill(t)
	// The segment of a server that has died is found from a directory above.
	if err := ReleaseAll(system); err != nil || segmentExists(t, lock.segment) {
		t.Errorf("the segment of a killed server exists: %v, %v", segmentExists(t, lock.segment), err)
	}
}

// BenchmarkRestart measures the cost of a database per cell of a matrix: Prepare, start and
// the wait until it is ready.
func BenchmarkRestart(b *testing.B) {
	server := newServer(b, filepath.Join(b.TempDir(), "data"))
	start(b, server).stop(b, server)
	for b.Loop() {
		process := start(b, server)
		b.StopTimer()
		process.stop(b, server)
		b.StartTimer()
	}
}
