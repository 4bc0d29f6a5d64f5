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

// makeDir creates the data directory if it does not exist. It returns the path without
// symbolic links, which later checks compare with the paths that the kernel reports.
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

// isDataDir reports whether dir is a PostgreSQL data directory. It returns false for an
// empty directory, and an error for one with other files: those may be a user's.
func isDataDir(dir string) (bool, error) {
	initialized, err := exists(filepath.Join(dir, "PG_VERSION"))
	if initialized || err != nil {
		return initialized, err
	}
	entries, err := os.ReadDir(dir)
	if len(entries) > 0 {
		err = fmt.Errorf("holds %s and no PG_VERSION: it is neither empty nor a data directory\n"+
			"give an empty directory, or one that does not exist", entries[0].Name())
	}
	return false, err
}

// exists reports whether a file exists.
func exists(path string) (bool, error) {
	_, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return err == nil, err
}

// buildDir calls build for a temporary directory and then renames it to the data
// directory. Without the rename, a data directory that an interruption left half made
// would look complete to the server, and its database would be missing.
func (s *Server) buildDir(build func(tempDir string) error) (err error) {
	tempDir := s.dir + ".new"
	if err := removeTempDir(tempDir); err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, removeTempDir(tempDir))
		}
	}()
	if err := os.Mkdir(tempDir, 0o700); err != nil {
		return err
	}
	if err := s.owner.own(tempDir); err != nil {
		return err
	}
	if err := build(tempDir); err != nil {
		return err
	}
	// os.Rename refuses an existing directory. The system call replaces an empty one.
	return unix.Rename(tempDir, s.dir)
}

// create initializes a data directory with an empty database.
func (s *Server) create(ctx context.Context, tempDir string) error {
	s.cfg.Log.Info("creating a data directory", "dir", s.dir, "version", s.cfg.Install.Version)
	// No sync is needed here: an interrupted create starts again from nothing. The running
	// server syncs every commit.
	initdb := s.command(ctx, "initdb", "--pgdata="+tempDir, "--username="+User, "--auth=trust",
		"--encoding=UTF8", "--locale=C", "--data-checksums", "--no-sync", "--no-instructions")
	if err := run(initdb, ""); err != nil {
		return err
	}
	// Single-user mode needs no port, no socket and no wait for readiness. Its arguments
	// must name an existing database. It reads one command per line.
	single := s.command(ctx, "postgres", "--single", "-F", "-D", tempDir, "-c", "exit_on_error=on", "postgres")
	return run(single, "CREATE DATABASE "+Database+"\n")
}

// removeTempDir removes a temporary directory, and the shared memory segment of a killed
// server in it.
func removeTempDir(tempDir string) error {
	lock, err := readLock(tempDir)
	if err != nil {
		return err
	}
	if lock.segment >= 0 {
		if err := removeSegment(lock.segment); err != nil {
			return err
		}
	}
	return os.RemoveAll(tempDir)
}

// run runs a command and waits for it and all processes that it starts. The error contains
// the last lines of the output.
func run(cmd *exec.Cmd, input string) error {
	var output bytes.Buffer
	// initdb starts servers. SIGTERM ends initdb, and its servers then shut down by
	// themselves. SIGKILL would leave their shared memory behind. The servers keep the
	// output open, so Wait waits for them, too. The separate process group keeps Ctrl-C at
	// the terminal from them.
	cmd.SysProcAttr.Setpgid = true
	// If this process is killed, the command must end: otherwise it would write to a
	// directory that a later process uses. The kernel sends Pdeathsig when the thread
	// that started the command ends, so the thread is locked.
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
