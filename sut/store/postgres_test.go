package store_test

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut/store"
)

// postgres is a PostgreSQL server that runs until the end of a test.
type postgres struct {
	bin, dir string
	free     netip.AddrPort
	as       *syscall.Credential // the user to run as, because PostgreSQL refuses root; nil = the current one
	stop     func(os.Signal)
}

// startPostgres starts a server with an empty database. It skips the test if PostgreSQL is
// not installed.
func startPostgres(t testing.TB) *postgres {
	t.Helper()
	found, _ := filepath.Glob("/usr/lib/postgresql/*/bin/initdb")
	if len(found) == 0 {
		t.Skip("no PostgreSQL server: install the Debian package postgresql")
	}
	dir, err := os.MkdirTemp("", "stagebench-pg-")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &postgres{bin: filepath.Dir(found[len(found)-1]), dir: dir, free: porttest.Free(t)}
	if os.Getuid() == 0 {
		p.as = unprivileged(t)
		if err := os.Chown(dir, int(p.as.Uid), int(p.as.Gid)); err != nil {
			t.Fatal(err)
		}
	}
	initdb := p.command("initdb", "-D", p.data(), "-U", store.User, "-A", "trust", "-E", "UTF8", "--locale=C", "--no-sync")
	if out, err := initdb.CombinedOutput(); err != nil {
		t.Fatalf("initdb: %v\n%s", err, out)
	}
	p.Restart(t)
	t.Cleanup(func() { p.Kill(t) })
	conn, err := p.connect(t.Context(), "postgres")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close(context.Background())
	if _, err := conn.Exec(t.Context(), "create database "+store.Database); err != nil {
		t.Fatal(err)
	}
	return p
}

// unprivileged returns an ordinary user. It skips the test if there is none.
func unprivileged(t testing.TB) *syscall.Credential {
	t.Helper()
	for _, name := range []string{"postgres", "nobody"} {
		if u, err := user.Lookup(name); err == nil {
			uid, _ := strconv.Atoi(u.Uid)
			gid, _ := strconv.Atoi(u.Gid)
			return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid)}
		}
	}
	t.Skip("PostgreSQL refuses root, and there is no user postgres or nobody")
	return nil
}

func (p *postgres) Address() string { return p.free.String() }

func (p *postgres) data() string { return filepath.Join(p.dir, "data") }

func (p *postgres) connect(ctx context.Context, database string) (*pgx.Conn, error) {
	return pgx.Connect(ctx, fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", store.User, p.Address(), database))
}

func (p *postgres) command(name string, args ...string) *exec.Cmd {
	cmd := exec.Command(filepath.Join(p.bin, name), args...)
	cmd.Dir = p.dir
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C"}
	// The server is killed when the thread that started it exits. Restart keeps that
	// thread.
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: p.as, Pdeathsig: syscall.SIGKILL}
	return cmd
}

// Kill stops the server at once, without a checkpoint.
func (p *postgres) Kill(t testing.TB) {
	t.Helper()
	if p.stop != nil {
		p.stop(syscall.SIGQUIT)
		p.stop = nil
	}
}

// Restart starts the server and waits until it answers.
func (p *postgres) Restart(t testing.TB) {
	t.Helper()
	var log bytes.Buffer
	cmd := p.command("postgres", "-D", p.data(), "-p", fmt.Sprint(p.free.Port()),
		"-c", "listen_addresses="+p.free.Addr().String(), "-c", "unix_socket_directories=")
	cmd.Stdout, cmd.Stderr = &log, &log
	started, exited := make(chan error), make(chan struct{})
	go func() {
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
		}
		close(exited)
	}()
	if err := <-started; err != nil {
		t.Fatal(err)
	}
	p.stop = func(sig os.Signal) {
		_ = cmd.Process.Signal(sig)
		<-exited
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		conn, err := p.connect(ctx, "postgres")
		if err == nil {
			conn.Close(ctx)
			return
		}
		select {
		case <-tick.C:
		case <-exited:
			t.Fatalf("PostgreSQL exited: %s", log.String())
		case <-ctx.Done():
			t.Fatalf("PostgreSQL does not answer: %v", err)
		}
	}
}
