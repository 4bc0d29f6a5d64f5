package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/budget"
	"github.com/stagebench/stagebench/targets/proc"
)

// Down stops the system. A node drains after all nodes that use it have stopped. It is
// killed if it takes too long or ctx ends. Then Down removes the cgroups and the private
// directory. Down may be called again; every call returns when all is removed.
func (s *System) Down(ctx context.Context) error {
	s.down.Do(func() { s.downErr = s.end(ctx) })
	return s.downErr
}

func (s *System) end(ctx context.Context) error {
	s.endLife()
	s.watching.Wait()
	for _, set := range s.sets() {
		set.watched.Wait()
	}
	s.admin.CloseIdleConnections()
	// A Scale in progress fails and rolls back, because the life of the system has ended.
	s.scaling.Lock()
	defer s.scaling.Unlock()
	hosts, nodes := s.members()
	for _, n := range nodes {
		n.watched.Wait()
	}
	var errs []error
	for _, h := range hosts {
		// A host drains faster without its CPU budget. A paused host cannot drain.
		errs = append(errs, h.budget.Lift(), h.budget.Signal(syscall.SIGCONT))
	}
	s.stopAll(ctx, nodes)
	for _, h := range hosts {
		errs = append(errs, h.budget.Remove())
	}
	s.logs.Wait()
	errs = append(errs, s.budgets())
	if s.dir != "" {
		errs = append(errs, s.opts.discard(s.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("bring down %s: %w", s.opts.Topology.Stage, err)
	}
	s.say("%s is down", s.opts.Topology.Stage)
	return nil
}

// stopAll stops each node after the nodes that use it, and independent nodes concurrently.
func (s *System) stopAll(ctx context.Context, nodes []*node) {
	stopped := map[*node]chan struct{}{}
	for _, n := range nodes {
		stopped[n] = make(chan struct{})
	}
	for _, n := range nodes {
		var users []*node
		for _, other := range nodes {
			for _, used := range s.usedBy(other) {
				if used == n {
					users = append(users, other)
				}
			}
		}
		go func() {
			defer close(stopped[n])
			for _, user := range users {
				<-stopped[user]
			}
			s.stop(ctx, n)
		}()
	}
	for _, done := range stopped {
		<-done
	}
}

func (s *System) stop(ctx context.Context, n *node) {
	s.mu.Lock()
	process := n.process
	s.mu.Unlock()
	text := "stopped"
	if process != nil {
		if exit := process.Stop(ctx); !exit.Clean() {
			text = "stopped: " + exit.Cause
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.serves() {
		s.note(n, "%s", text)
	}
	s.set(n, targets.Stopped)
}

// Sweep removes what killed harnesses of this user have left behind: their processes and cgroups, their private
// directories with logs and with what Options.Release frees, and half-built templates. It needs no Topology, and
// without a TemplateDir it sweeps no templates. It ignores errors: what stays does no harm, and the next Sweep tries
// again.
//
// Several processes may call Sweep at the same time, also while systems run.
func Sweep(opts Options) {
	opts = opts.withDefaults()
	budget.Sweep(budget.Options{}) // first: the processes use the directories
	entries, _ := os.ReadDir(opts.workDir)
	for _, entry := range entries {
		name, ours := strings.CutPrefix(entry.Name(), dirPrefix)
		if owner, ok := proc.ParseOwner(name); ours && ok && isOwn(entry) && owner.Gone("/") {
			_ = opts.discard(filepath.Join(opts.workDir, entry.Name()))
		}
	}
	if opts.TemplateDir == "" { // else the pattern would match files of the user in the working directory
		return
	}
	locks, _ := filepath.Glob(filepath.Join(opts.TemplateDir, "*"+lockSuffix))
	for _, lock := range locks {
		sweepTemplate(strings.TrimSuffix(lock, lockSuffix))
	}
}

// isOwn reports whether an entry is a directory of this user, and not a link to one.
func isOwn(entry os.DirEntry) bool {
	info, err := entry.Info()
	if err != nil || !info.IsDir() {
		return false
	}
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && int(stat.Uid) == os.Geteuid()
}

// sweepTemplate removes what builders of a template left behind that died, unless it is being built.
func sweepTemplate(dir string) {
	file, err := os.OpenFile(dir+lockSuffix, os.O_RDWR, 0)
	if err != nil {
		return
	}
	defer file.Close()
	if unix.Flock(int(file.Fd()), unix.LOCK_EX|unix.LOCK_NB) == nil {
		_ = removeStaged(dir)
	}
}

// discard removes a directory of nodes whose processes have all ended.
func (o Options) discard(dir string) error {
	return errors.Join(o.Release(dir), os.RemoveAll(dir))
}
