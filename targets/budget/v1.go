package budget

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/targets/proc"
)

// v1Group is one group in the hierarchies of cgroup v1. The controllers cpu, cpuacct
// and memory may be in separate hierarchies or share one.
type v1Group struct {
	files  filesystem
	root   string   // directory that contains proc
	cpu    string   // directory in the cpu hierarchy
	acct   string   // directory in the cpuacct hierarchy
	memory string   // directory in the memory hierarchy, "" without it
	home   []string // directories of this process's group, one per hierarchy
}

// detectV1 creates the manager's own group below this process's group, in each
// hierarchy.
func (m *Manager) detectV1(found mounts, self proc.Owner) error {
	if found.v1["cpuacct"] == "" {
		return errors.New("cgroup v1 has no cpuacct hierarchy; mount it beside cpu")
	}
	base := &v1Group{
		files: m.opts.files, root: m.opts.root,
		cpu: found.v1["cpu"], acct: found.v1["cpuacct"], memory: found.v1["memory"],
	}
	base.home = base.dirs()
	err := m.makeTop(base, self)
	m.describe = "cgroup v1"
	if err != nil && base.memory != "" {
		// Try again without memory limits. CPU limits alone are still useful.
		base.memory = ""
		base.home = base.dirs()
		err = m.makeTop(base, self)
	}
	if err != nil {
		return fmt.Errorf("%w; %s", err, adviceV1(err))
	}
	if base.memory == "" {
		m.describe += ", no memory limits"
	}
	return nil
}

func adviceV1(err error) string {
	if errors.Is(err, syscall.EROFS) {
		return adviceContainer
	}
	return "only root can use cgroup v1: run as root"
}

// dirs returns the directories of the group, each once: cpu and cpuacct often share
// a hierarchy.
func (g *v1Group) dirs() []string {
	dirs := []string{g.cpu}
	for _, dir := range []string{g.acct, g.memory} {
		if dir != "" && !slices.Contains(dirs, dir) {
			dirs = append(dirs, dir)
		}
	}
	return dirs
}

func (g *v1Group) child(name string) (group, error) {
	child := &v1Group{
		files: g.files, root: g.root, home: g.home,
		cpu: filepath.Join(g.cpu, name), acct: filepath.Join(g.acct, name),
	}
	if g.memory != "" {
		child.memory = filepath.Join(g.memory, name)
	}
	for i, dir := range child.dirs() {
		if err := g.files.mkdir(dir); err != nil {
			for _, made := range child.dirs()[:i] {
				_ = g.files.rmdir(made)
			}
			return nil, err
		}
	}
	if g.memory != "" {
		// Old kernels count the memory of nested groups only with this setting. New
		// kernels always count it, and some of them refuse the write.
		_ = g.files.write(filepath.Join(child.memory, "memory.use_hierarchy"), "1")
	}
	return child, nil
}

// start moves one thread into the group, starts the command from it, and moves the
// thread back. A child process, with all its threads, starts in the group of the
// thread that forked it. Moving the child after its start would miss the threads
// that it has already created.
func (g *v1Group) start(cmd *exec.Cmd) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := g.enterAsOrdinary()
		if err == nil {
			err = cmd.Start()
		}
		// The runtime must not reuse the thread while it is inside the group:
		// other goroutines of the harness would be throttled and accounted there.
		// If the thread cannot leave the group, it stays locked, and the runtime
		// ends it together with this goroutine.
		if g.enter(g.home) == nil {
			runtime.UnlockOSThread()
		}
		result <- err
	}()
	return <-result
}

// enterAsOrdinary moves the calling thread into the groups, with the ordinary priority if need be.
// Where the kernel budgets real-time time by group (CONFIG_RT_GROUP_SCHED), a thread with
// real-time priority cannot enter a group without such a budget. The harness has this priority
// while it sends load, and gives it to threads that lost it. On a busy machine, a thread with the
// ordinary priority may wait so long for a CPU that it gets the other one before it enters, even
// several times in a row.
func (g *v1Group) enterAsOrdinary() (err error) {
	for range 100 {
		if err = g.enter(g.dirs()); !errors.Is(err, syscall.EINVAL) {
			return err
		}
		ordinary := &unix.SchedAttr{Size: unix.SizeofSchedAttr, Flags: unix.SCHED_FLAG_RESET_ON_FORK}
		if failed := unix.SchedSetAttr(0, ordinary, 0); failed != nil {
			return fmt.Errorf("%w, and its priority cannot be lowered: %w", err, failed)
		}
	}
	return err
}

// enter moves the calling thread into these groups.
func (g *v1Group) enter(dirs []string) error {
	tid := strconv.Itoa(syscall.Gettid())
	for _, dir := range dirs {
		if err := g.files.write(filepath.Join(dir, "tasks"), tid); err != nil {
			return fmt.Errorf("move a thread into %s: %w", dir, err)
		}
	}
	return nil
}

// limitCPU removes the old limit first. So the burst is never larger than the quota,
// which the kernel would refuse.
func (g *v1Group) limitCPU(q Quota) error {
	settings := []setting{{"cpu.cfs_burst_us", "0"}, {"cpu.cfs_quota_us", "-1"}}
	if q != (Quota{}) {
		settings = append(settings, setting{"cpu.cfs_period_us", micros(q.Period)},
			setting{"cpu.cfs_quota_us", micros(q.Quota)}, setting{"cpu.cfs_burst_us", micros(q.Quota)})
	}
	return set(g.files, g.cpu, settings...)
}

func (g *v1Group) limitMemory(bytes int64) error {
	if g.memory == "" {
		return nil
	}
	limit := strconv.FormatInt(bytes, 10)
	if err := g.files.write(filepath.Join(g.memory, "memory.limit_in_bytes"), limit); err != nil {
		return err
	}
	// A swapping host would measure the disk, so the limit includes swap. Without
	// swap accounting this write fails. The error is ignored, because nothing else
	// can be done.
	_ = g.files.write(filepath.Join(g.memory, "memory.memsw.limit_in_bytes"), limit)
	return nil
}

func (g *v1Group) usage() (Usage, error) {
	nanos, err := readNumber(filepath.Join(g.acct, "cpuacct.usage"))
	if err != nil {
		return Usage{}, err
	}
	stat, err := readTable(filepath.Join(g.cpu, "cpu.stat"))
	if err != nil {
		return Usage{}, err
	}
	usage := Usage{
		CPUSeconds: float64(nanos) / 1e9, ThrottledSeconds: float64(stat["throttled_time"]) / 1e9,
		Periods: stat["nr_periods"], ThrottledPeriods: stat["nr_throttled"],
	}
	if g.memory == "" {
		usage.RSSBytes, err = residentOf(g.root, g)
		return usage, err
	}
	return usage.withMemory(g.memory, "total_rss", "total_mapped_file", "memory.oom_control")
}

// pids excludes this process. A group lists a process when one of its threads is
// inside, and a thread of the harness is inside while it starts a node. If pids
// returned the harness, killing the members would kill the harness.
func (g *v1Group) pids() ([]int, error) {
	pids, err := procsIn(g.cpu)
	self := os.Getpid()
	return slices.DeleteFunc(pids, func(pid int) bool { return pid == self }), err
}

func (g *v1Group) kill(pids []int) error { return killProcs(pids) }

func (g *v1Group) remove() error { return removeGroups(g.files, g.dirs()...) }
