package nginx

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// pollInterval is the time between two looks at the worker processes.
const pollInterval = 5 * time.Millisecond

// SetOrigins writes a new configuration, and has the server start new workers with it. It returns when the old workers
// have ended: then no request uses a removed origin. An old worker ends after its requests in flight, at the latest
// after Config.Drain. If ctx ends before, the change is in effect, and the error is that of ctx.
func (s *Server) SetOrigins(ctx context.Context, origins []sut.Peer) error {
	if err := sut.ValidateOrigins(origins); err != nil {
		return fmt.Errorf("nginx: %w: %w", sut.ErrWiring, err)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	if slices.Equal(origins, s.origins) {
		return nil
	}
	before := s.origins
	master, err := s.master()
	if err != nil {
		return fmt.Errorf("nginx: %w: %w", sut.ErrWiring, err)
	}
	old, err := children(master)
	if err == nil {
		err = s.writeConfig(ctx, origins)
	}
	if err == nil {
		err = syscall.Kill(master, syscall.SIGHUP)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("nginx: %w: %w", sut.ErrWiring, err), s.writeConfig(context.WithoutCancel(ctx), before))
	}
	s.origins = slices.Clone(origins)
	if err := awaitReload(ctx, master, old); err != nil {
		return fmt.Errorf("nginx: workers with the old origins: %w", err)
	}
	return nil
}

// awaitReload waits until a server has new workers and none of the old ones.
func awaitReload(ctx context.Context, master int, old []int) error {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		now, err := children(master)
		if err != nil {
			return err
		}
		stays := func(pid int) bool { return slices.Contains(old, pid) }
		if len(now) > 0 && !slices.ContainsFunc(now, stays) {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// master returns the process id of the running server.
func (s *Server) master() (int, error) {
	text, err := os.ReadFile(filepath.Join(s.cfg.Dir, pidName))
	if err != nil {
		return 0, fmt.Errorf("is the server running? %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 1 {
		return 0, fmt.Errorf("%s has no process id: %q", pidName, text)
	}
	if !s.owns(pid) {
		return 0, fmt.Errorf("the server with process id %d has ended", pid)
	}
	return pid, nil
}

// owns reports whether a process is an nginx in this server's directory. The id in a file may be that of another
// process by now.
func (s *Server) owns(pid int) bool {
	dir, err := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
	if err != nil || dir != s.cfg.Dir {
		return false
	}
	name, err := os.ReadFile(fmt.Sprintf("/proc/%d/comm", pid))
	return err == nil && strings.TrimSpace(string(name)) == "nginx"
}

// children returns the process ids of a server's workers and of its cache manager.
func children(master int) ([]int, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%d/children", master, master))
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, field := range bytes.Fields(text) {
		pid, err := strconv.Atoi(string(field))
		if err != nil {
			return nil, err
		}
		pids = append(pids, pid)
	}
	return pids, nil
}

// endLeftovers kills what is left of a server in this directory. When the main process of nginx is killed, its workers
// go on, and keep the port.
func (s *Server) endLeftovers(ctx context.Context) error {
	poll := time.NewTicker(pollInterval)
	defer poll.Stop()
	for {
		processes, err := os.ReadDir("/proc")
		if err != nil {
			return err
		}
		left := 0
		for _, process := range processes {
			pid, err := strconv.Atoi(process.Name())
			if err != nil || pid == os.Getpid() || !s.owns(pid) {
				continue
			}
			left++
			_ = syscall.Kill(pid, syscall.SIGKILL) // it may have ended
		}
		if left == 0 {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
