package budget

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/stagebench/stagebench/targets/proc"
)

// treeEnv is an environment variable with the path of the group of a process. Child
// processes inherit it. So a server whose parent was killed, and whose new parent is
// pid 1, is still recognised as ours.
const treeEnv = "STAGEBENCH_GROUP"

// treeGroup replaces a cgroup where there are no cgroups. Its members are the
// processes that it started, the processes with its path in treeEnv, and the
// descendants of both. It measures and kills, but it limits nothing.
type treeGroup struct {
	root string // directory that contains proc
	path string // "MANAGER/host/node", the value of treeEnv

	mu       sync.Mutex
	children []*treeGroup   // guarded by mu
	started  map[int]uint64 // guarded by mu: pid -> start time
	carried  uint64         // guarded by mu: CPU ticks of processes before the last restart
	seen     uint64         // guarded by mu: most CPU ticks measured since the last restart
}

func newTree(root, path string) *treeGroup {
	return &treeGroup{root: root, path: path, started: map[int]uint64{}}
}

func (g *treeGroup) child(name string) (group, error) {
	child := newTree(g.root, g.path+"/"+name)
	g.mu.Lock()
	defer g.mu.Unlock()
	g.children = append(g.children, child)
	return child, nil
}

func (g *treeGroup) start(cmd *exec.Cmd) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if members, err := g.members(); err == nil && len(members) == 0 {
		g.carried, g.seen = g.carried+g.seen, 0
	}
	if cmd.Env == nil {
		cmd.Env = os.Environ()
	}
	// cmd.Env may be shared by the commands of several nodes, so append to a copy.
	cmd.Env = slices.Concat(cmd.Env, []string{treeEnv + "=" + g.path})
	if err := cmd.Start(); err != nil {
		return err
	}
	if stat, err := proc.ReadStat(g.root, cmd.Process.Pid); err == nil {
		g.started[stat.PID] = stat.Start
	}
	return nil
}

func (g *treeGroup) limitCPU(Quota) error    { return nil }
func (g *treeGroup) limitMemory(int64) error { return nil }

func (g *treeGroup) usage() (Usage, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	var sum Usage
	for _, child := range g.children {
		usage, err := child.usage()
		if err != nil {
			return Usage{}, err
		}
		sum.CPUSeconds += usage.CPUSeconds
		sum.RSSBytes += usage.RSSBytes
	}
	if len(g.children) > 0 {
		return sum, nil
	}
	members, err := g.members()
	if err != nil {
		return Usage{}, err
	}
	var ticks uint64
	var pages int64
	for _, stat := range members {
		ticks += stat.Ticks
		pages += stat.RSSPages
	}
	// The ticks of a process disappear when it ends. Without max the CPU time could
	// decrease, and a delta of it would be negative.
	g.seen = max(g.seen, ticks)
	return Usage{
		CPUSeconds: float64(g.carried+g.seen) / proc.TicksPerSecond,
		RSSBytes:   pages * int64(os.Getpagesize()),
	}, nil
}

func (g *treeGroup) pids() ([]int, error) {
	g.mu.Lock()
	defer g.mu.Unlock()
	members, err := g.members()
	var pids []int
	for _, stat := range members {
		if stat.State != 'Z' && stat.State != 'X' {
			pids = append(pids, stat.PID)
		}
	}
	return pids, err
}

// members lists the processes of this group and of its nested groups. The caller
// holds mu.
func (g *treeGroup) members() ([]proc.Stat, error) {
	entries, err := os.ReadDir(filepath.Join(g.root, "proc"))
	if err != nil {
		return nil, err
	}
	self := os.Getpid()
	byParent := map[int][]proc.Stat{}
	var queue []proc.Stat
	for _, entry := range entries {
		pid, err := strconv.Atoi(entry.Name())
		if err != nil || pid == self {
			continue
		}
		stat, err := proc.ReadStat(g.root, pid)
		if err != nil {
			continue // it has ended
		}
		byParent[stat.Parent] = append(byParent[stat.Parent], stat)
		if g.startedHere(stat) || g.marked(pid) {
			queue = append(queue, stat)
		}
	}
	var members []proc.Stat
	known := map[int]bool{}
	for len(queue) > 0 {
		next := queue[0]
		queue = queue[1:]
		if !known[next.PID] {
			known[next.PID] = true
			members = append(members, next)
			queue = append(queue, byParent[next.PID]...)
		}
	}
	return members, nil
}

// startedHere reports whether this group or a nested one has started the process. The
// caller holds mu.
func (g *treeGroup) startedHere(stat proc.Stat) bool {
	if start, ok := g.started[stat.PID]; ok && start == stat.Start {
		return true
	}
	for _, child := range g.children {
		child.mu.Lock()
		here := child.startedHere(stat)
		child.mu.Unlock()
		if here {
			return true
		}
	}
	return false
}

// marked reports whether treeEnv of the process names this group or a nested one. It
// is false if the environment cannot be read. Only root reads the environment of
// another user's process, and only root starts nodes as another user.
func (g *treeGroup) marked(pid int) bool {
	env, _ := os.ReadFile(filepath.Join(g.root, "proc", strconv.Itoa(pid), "environ"))
	for variable := range bytes.SplitSeq(env, []byte{0}) {
		path, ok := strings.CutPrefix(string(variable), treeEnv+"=")
		if ok && (path == g.path || strings.HasPrefix(path, g.path+"/")) {
			return true
		}
	}
	return false
}

// kill kills the current members. It opens a pid file descriptor before it compares
// the start time. So it never kills another process that has got the same pid.
func (g *treeGroup) kill([]int) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	members, err := g.members()
	if err != nil {
		return err
	}
	for _, stat := range members {
		process, _ := os.FindProcess(stat.PID) // never fails here
		if now, err := proc.ReadStat(g.root, stat.PID); err == nil && now.Start == stat.Start {
			err := process.Signal(syscall.SIGKILL)
			if err != nil && !errors.Is(err, os.ErrProcessDone) {
				return fmt.Errorf("kill process %d: %w", stat.PID, err)
			}
		}
		_ = process.Release()
	}
	return nil
}

func (g *treeGroup) remove() error { return nil }

// waitOf returns the time in which the threads of a group were ready to run but had no CPU, in seconds, summed over its
// threads: they waited for another thread, or for the next quota period. Ended threads are not counted. It is the
// second field of schedstat, in nanoseconds; see Documentation/scheduler/sched-stats.rst of Linux.
func waitOf(root string, g group) (seconds float64) {
	pids, err := g.pids()
	if err != nil {
		return 0
	}
	for _, pid := range pids {
		threads, _ := filepath.Glob(filepath.Join(root, "proc", strconv.Itoa(pid), "task", "*", "schedstat"))
		for _, path := range threads {
			text, _ := os.ReadFile(path) // the thread may have ended
			if fields := strings.Fields(string(text)); len(fields) == 3 {
				ns, _ := strconv.ParseFloat(fields[1], 64)
				seconds += ns / 1e9
			}
		}
	}
	return seconds
}

// residentOf returns the sum of the resident memory of the processes of a group, in
// bytes. It counts a shared page for each process that maps it.
func residentOf(root string, g group) (int64, error) {
	pids, err := g.pids()
	var pages int64
	for _, pid := range pids {
		if stat, err := proc.ReadStat(root, pid); err == nil {
			pages += stat.RSSPages
		}
	}
	return pages * int64(os.Getpagesize()), err
}
