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

// settle returns nil when no server uses the data directory. One that runs is
// an error. Processes that outlive a killed one are waited for: to start beside
// them would have two servers write to the same files.
//
// A stale postmaster.pid is left to the server, which recovers from it, unless
// its process id has since gone to somebody else: then the server would take
// that one for itself and refuse to start.
func settle(ctx context.Context, dir string) error {
	for {
		lock, err := readLock(dir)
		if err != nil {
			return err
		}
		users := serversIn(dir)
		switch {
		case slices.Contains(users, lock.pid):
			return fmt.Errorf("a server runs on it: process %d\nstop that one, or choose another directory", lock.pid)
		case len(users) == 0 && lock.pid != 0 && alive(lock.pid):
			return os.Remove(filepath.Join(dir, lockName))
		case len(users) == 0:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("processes of a killed server are still there: %v: %w\n"+
				"end them, or choose another directory", users, context.Cause(ctx))
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// Release gives back what a killed server left in the kernel: a System V shared
// memory segment of a few bytes, which would stay until the machine restarts.
// Call it when the server has gone and is not to be started again; after a
// clean stop it does nothing.
func (s *Server) Release() error {
	if s.dir == "" {
		return nil
	}
	lock, err := readLock(s.dir)
	if err != nil {
		return fmt.Errorf("postgres: release: %w", err)
	}
	if lock.segment < 0 {
		return nil
	}
	if users := serversIn(s.dir); len(users) > 0 {
		return fmt.Errorf("postgres: release: data directory %s is in use by %v\nstop the server first", s.dir, users)
	}
	if err := removeSegment(lock.segment); err != nil {
		return fmt.Errorf("postgres: release: shared memory segment %d: %w", lock.segment, err)
	}
	return nil
}

// removeSegment removes a shared memory segment that nobody is attached to; one
// that has gone already is no error.
func removeSegment(id int) error {
	var segment unix.SysvShmDesc
	_, err := unix.SysvShmCtl(id, unix.IPC_STAT, &segment)
	if err == nil && segment.Nattch == 0 {
		_, err = unix.SysvShmCtl(id, unix.IPC_RMID, nil)
	}
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.EIDRM) {
		return nil
	}
	return err
}

// lockName is the file that a running server keeps in its data directory.
const lockName = "postmaster.pid"

// lock is what the server wrote into its lock file. Source: PostgreSQL,
// src/include/utils/pidfile.h.
type lock struct {
	pid     int  // line 1; 0 without a file
	segment int  // line 7, second word: id of its shared memory segment; -1 for none
	ready   bool // line 8: it accepts connections
}

// readLock reads the lock file; without one it is empty.
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

// parseLock reads a lock file, complete or not: a server that dies early leaves
// a short one.
func parseLock(text string) lock {
	lines := append(strings.Split(text, "\n"), make([]string, 8)...)
	found := lock{segment: -1, ready: strings.TrimSpace(lines[7]) == "ready"}
	found.pid, _ = strconv.Atoi(strings.TrimSpace(lines[0]))
	if words := strings.Fields(lines[6]); len(words) == 2 {
		if id, err := strconv.Atoi(words[1]); err == nil {
			found.segment = id
		}
	}
	return found
}

// serversIn lists the processes of PostgreSQL that work in a data directory:
// all of a server's have it as their working directory. Others' processes are
// invisible to an ordinary user, but then so is their data directory.
func serversIn(dir string) []int {
	entries, _ := os.ReadDir("/proc") // without it the server's own checks remain
	var pids []int
	for _, entry := range entries {
		process := filepath.Join("/proc", entry.Name())
		// Both vanish with the process, and a zombie has neither.
		cwd, _ := os.Readlink(filepath.Join(process, "cwd"))
		program, _ := os.Readlink(filepath.Join(process, "exe"))
		pid, err := strconv.Atoi(entry.Name())
		if err == nil && cwd == dir && strings.TrimSuffix(filepath.Base(program), " (deleted)") == "postgres" {
			pids = append(pids, pid)
		}
	}
	return pids
}

// alive reports whether there is a process of that id.
func alive(pid int) bool {
	err := unix.Kill(pid, 0)
	return err == nil || errors.Is(err, unix.EPERM)
}
