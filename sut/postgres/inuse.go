package postgres

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// waitUnused returns nil when no server uses the data directory, and an error when a
// server runs on it. It waits for the child processes of a killed server: a new server
// would write to the same files at the same time.
//
// A server recovers from a stale postmaster.pid by itself, except when its process id now
// belongs to another process: the server would then report that it already runs, and
// refuse to start. waitUnused removes the file in that case.
func waitUnused(ctx context.Context, dir string) error {
	poll := time.NewTicker(5 * time.Millisecond)
	defer poll.Stop()
	for {
		lock, err := readLock(dir)
		if err != nil {
			return err
		}
		users := serversIn(dir)
		switch {
		case slices.Contains(users, lock.pid):
			return fmt.Errorf("a server uses it: process %d\nstop that server, or choose another directory", lock.pid)
		case len(users) == 0 && lock.pid != 0 && alive(lock.pid):
			return os.Remove(filepath.Join(dir, lockName))
		case len(users) == 0:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes of a killed server still run: %v: %w\n"+
				"end them, or choose another directory", users, context.Cause(ctx))
		case <-poll.C:
		}
	}
}

// Release removes the System V shared memory segment of a killed server. The segment has a
// few bytes and would stay until the machine restarts. Call Release when the server has
// ended and will not be started again. After a clean stop it does nothing.
func (s *Server) Release() error {
	if s.dir == "" {
		return nil
	}
	lock, err := readLock(s.dir)
	if err != nil {
		return fmt.Errorf("postgres: release: %w", err)
	}
	if users := serversIn(s.dir); len(users) > 0 {
		return fmt.Errorf("postgres: release: data directory %s is in use by processes %v\nstop the server first",
			s.dir, users)
	}
	if err := lock.removeSegment(); err != nil {
		return fmt.Errorf("postgres: release: %w", err)
	}
	return nil
}

// ReleaseAll removes the shared memory segments of all killed servers with a data directory in dir, at any depth. Call
// it before dir is removed. It needs no Server, so it also serves after the death of the process that had one. It does
// nothing for a server that runs, and returns an error only for a segment that could not be removed.
func ReleaseAll(dir string) error {
	var errs []error
	// Directories that cannot be read are left out: dir may be removed by another process at the same time.
	_ = filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return nil
		}
		if entry.Type().IsRegular() && entry.Name() == lockName {
			if lock, err := readLock(filepath.Dir(path)); err == nil {
				errs = append(errs, lock.removeSegment())
			}
		}
		return nil
	})
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("postgres: release %s: %w", dir, err)
	}
	return nil
}

// removeSegment removes the server's shared memory segment if no process is attached to it. It returns nil if there is
// no such segment, or if it is the segment of another server: the kernel may have reused the id.
func (l lock) removeSegment() error {
	if l.segment < 0 {
		return nil
	}
	var segment unix.SysvShmDesc
	_, err := unix.SysvShmCtl(l.segment, unix.IPC_STAT, &segment)
	if err == nil && segment.Nattch == 0 && int(segment.Cpid) == l.pid {
		_, err = unix.SysvShmCtl(l.segment, unix.IPC_RMID, nil)
	}
	if err == nil || errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIDRM) {
		return nil
	}
	return fmt.Errorf("shared memory segment %d: %w", l.segment, err)
}

// lockName is the file that a running server keeps in its data directory.
const lockName = "postmaster.pid"

// lock is the content of a server's lock file. Source: PostgreSQL,
// src/include/utils/pidfile.h.
type lock struct {
	pid     int  // line 1, without the minus sign of a server in single-user mode; 0 = no file
	segment int  // line 7, second word: id of the shared memory segment; -1 = none
	ready   bool // line 8: the server accepts connections
}

// readLock reads the lock file of a data directory. It returns an empty lock if there is
// no such file.
func readLock(dir string) (lock, error) {
	text, err := os.ReadFile(filepath.Join(dir, lockName))
	if errors.Is(err, fs.ErrNotExist) {
		return lock{segment: -1}, nil
	}
	if err != nil {
		return lock{}, err
	}
	return parseLock(string(text)), nil
}

// parseLock parses a lock file. The text may be incomplete: a server that dies early leaves
// a short file.
func parseLock(text string) lock {
	lines := append(strings.Split(text, "\n"), make([]string, 8)...)
	found := lock{segment: -1, ready: strings.TrimSpace(lines[7]) == "ready"}
	found.pid, _ = strconv.Atoi(strings.TrimPrefix(strings.TrimSpace(lines[0]), "-"))
	if words := strings.Fields(lines[6]); len(words) == 2 {
		if id, err := strconv.Atoi(words[1]); err == nil {
			found.segment = id
		}
	}
	return found
}

// serversIn lists the PostgreSQL processes whose working directory is dir: that is the data
// directory for all processes of a server. An ordinary user does not see the processes of
// other users, but has no access to their data directories either.
func serversIn(dir string) []int {
	entries, _ := os.ReadDir("/proc") // without /proc the server's own checks remain
	var pids []int
	for _, entry := range entries {
		process := filepath.Join("/proc", entry.Name())
		// Both links fail when the process has ended, and for a zombie.
		cwd, _ := os.Readlink(filepath.Join(process, "cwd"))
		program, _ := os.Readlink(filepath.Join(process, "exe"))
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && cwd == dir && strings.TrimSuffix(filepath.Base(program), " (deleted)") == "postgres" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// alive reports whether a process with this id exists.
func alive(pid int) bool {
	err := unix.Kill(pid, 0)
	return err == nil || errors.Is(err, unix.EPERM)
}
