package postgres

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// makeDir makes the data directory where it does not exist and returns its path
// without symbolic links, so that every later check follows the same way as the
// kernel.
func makeDir(path string) (string, error) {
	path, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return "", err
	}
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return "", err
	}
	return filepath.EvalSymlinks(path)
}

// isDataDir reports whether the directory holds a data directory; what holds
// anything else is an error, as it is somebody's.
func isDataDir(dir string) (bool, error) {
	made, err := exists(filepath.Join(dir, "PG_VERSION"))
	if made || err != nil {
		return made, err
	}
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 {
		err = fmt.Errorf("holds %s and no PG_VERSION: not empty, and no data directory\n"+
			"give an empty directory, or one that does not exist", entries[0].Name())
	}
	return false, err
}

// exists reports whether there is a file.
func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// stage has fill make the data directory beside its place, and renames it at the
// end: one that was interrupted half way looks complete to the server, and would
// lack the database for ever.
func (s *Server) stage(fill func(staging string) error) (err error) {
	staging := s.dir + ".new"
	if err := discard(staging); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, discard(staging))
		}
	}()
	if err := os.Mkdir(staging, 0o700); err != nil {
		return err
	}
	if err := s.owner.own(staging); err != nil {
		return err
	}
	if err := fill(staging); err != nil {
		return err
	}
	// In one step: the target may exist, and is empty. (os.Rename refuses that.)
	return unix.Rename(staging, s.dir)
}

// create makes a data directory with an empty database.
func (s *Server) create(ctx context.Context, staging string) error {
	s.cfg.Log.Info("making a data directory", "dir", s.dir, "version", s.cfg.Install.Version)
	// Without syncs: what is being made can be made again, and once it serves,
	// every commit is synced.
	initdb := s.command(ctx, "initdb", "--pgdata="+staging, "--username="+User, "--auth=trust",
		"--encoding=UTF8", "--locale=C", "--data-checksums", "--no-sync", "--no-instructions")
	if err := run(initdb, ""); err != nil {
		return err
	}
	// Single-user mode needs no port, no socket and no waiting. It wants the
	// name of a database that exists, and each command on a line of its own.
	single := s.command(ctx, "postgres", "--single", "-F", "-D", staging, "-c", "exit_on_error=on", "postgres")
	return run(single, "CREATE DATABASE "+Database+"\n")
}

// discard removes what an interrupted create left: files, and the shared memory
// of a server that was killed.
func discard(staging string) error {
	lock, err := readLock(staging)
	if err != nil {
		return err
	}
	if lock.segment >= 0 {
		if err := removeSegment(lock.segment); err != nil {
			return err
		}
	}
	return os.RemoveAll(staging)
}

// run runs a command to its end, with all that it starts; its error carries
// what the command said last.
func run(cmd *exec.Cmd, input string) error {
	var output bytes.Buffer
	// initdb starts servers of its own. Told to end, it leaves them, and they end
	// when it is gone, each in order; killed, they would leave shared memory
	// behind. They hold the output open, so that Wait waits for them, too. A group
	// of its own keeps an interrupt at the terminal from reaching them.
	cmd.SysProcAttr.Setpgid = true
	// Nor may it outlive us: it would write where somebody else does by then. The
	// signal comes when the thread ends that started it.
	cmd.SysProcAttr.Pdeathsig = syscall.SIGTERM
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	cmd.Stdin = strings.NewReader(input)
	cmd.Stdout, cmd.Stderr = &output, &output
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("%s: %w\n%s", filepath.Base(cmd.Path), err, lastLines(output.String(), 5))
	}
	return nil
}

// lastLines returns the last n lines of a text.
func lastLines(text string, n int) string {
	lines := strings.Split(strings.TrimSpace(text), "\n")
	return strings.Join(lines[max(0, len(lines)-n):], "\n")
}
