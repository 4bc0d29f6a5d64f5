package budget

import (
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
	"testing"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/targets/proc"
)

// groupsUnderTest returns a constructor of a manager for each kind of group. The
// constructor skips the test if this machine does not support that kind.
func groupsUnderTest() map[string]func(t *testing.T) *Manager {
	return map[string]func(t *testing.T) *Manager{
		"cgroup v1": func(t *testing.T) *Manager {
			m := Detect(Options{Prefix: prefix(t)})
			if !strings.HasPrefix(m.Describe(), "cgroup v1") {
				m.Close()
				t.Skipf("needs root and cgroup v1, here: %s", m.Describe())
			}
			return m
		},
		"cgroup v2": realV2,
		"process tree": func(t *testing.T) *Manager {
			return Unlimited("requested")
		},
	}
}

// realV2 returns a manager with groups in a real v2 hierarchy. Where cgroup v1 has the
// cpu controller, the groups have no controllers. The kit does not need any.
func realV2(t *testing.T) *Manager {
	t.Helper()
	m := Detect(Options{Prefix: prefix(t)})
	if strings.HasPrefix(m.Describe(), "cgroup v2") {
		return m
	}
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	found, err := findMounts("/")
	if err != nil || found.v2 == "" {
		t.Skip("no cgroup v2 hierarchy is mounted")
	}
	self, err := proc.Self("/")
	if err != nil {
		t.Fatal(err)
	}
	m = newManager(Options{Prefix: prefix(t)})
	base := &v2Group{files: m.opts.files, root: "/", dir: found.v2}
	if m.top, err = base.child(topName(m.opts.Prefix, self, 1)); err != nil {
		t.Skipf("needs a writable cgroup v2 hierarchy: %v", err)
	}
	return m
}

// prefix returns a prefix of group names that no other test and no harness uses.
func prefix(t *testing.T) string {
	return "stagebench-test-" + strings.Map(func(r rune) rune {
		if r == '/' || r == ' ' || r == '-' {
			return '_'
		}
		return r
	}, t.Name())
}

// TestGroupKit is the conformance kit of every kind of group.
func TestGroupKit(t *testing.T) {
	t.Parallel()
	for kind, make := range groupsUnderTest() {
		for name, check := range map[string]func(*testing.T, *Manager){
			"a child starts inside":        startsInside,
			"CPU time is measured":         measuresCPU,
			"the usage includes restarts":  usageIncludesRestarts,
			"memory is measured":           measuresMemory,
			"kill reaches other sessions":  killReachesOtherSessions,
			"stop and continue":            stopAndContinue,
			"this process is never killed": thisProcessIsNeverKilled,
			"names":                        names,
			"close removes everything":     closeRemovesEverything,
			"a real-time harness starts":   realTimeHarnessStarts,
		} {
			t.Run(kind+"/"+name, func(t *testing.T) {
				t.Parallel()
				m := make(t)
				t.Cleanup(func() {
					if err := m.Close(); err != nil {
						t.Error(err)
					}
				})
				check(t, m)
			})
		}
	}
}

// leaf creates a host and a leaf on it.
func leaf(t *testing.T, m *Manager) (*Host, *Leaf) {
	t.Helper()
	host, err := m.NewHost("host-1", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := host.Leaf("node-1")
	if err != nil {
		t.Fatal(err)
	}
	return host, leaf
}

// startsInside checks that all threads of a child are in the groups of its leaf.
func startsInside(t *testing.T, m *Manager) {
	_, leaf := leaf(t, m)
	c := launch(t, "threads", leaf.Start)
	pids, err := leaf.group.pids()
	if err != nil || !slices.Equal(pids, []int{c.cmd.Process.Pid}) {
		t.Fatalf("the leaf contains %v, %v; want %d", pids, err, c.cmd.Process.Pid)
	}
	want := len(dirsOf(leaf.group))
	tasks, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/cgroup", c.cmd.Process.Pid))
	if err != nil || len(tasks) < 20 {
		t.Fatalf("%d threads, %v; want more than 20", len(tasks), err)
	}
	for _, task := range tasks {
		text, err := os.ReadFile(task)
		if err != nil {
			t.Fatal(err)
		}
		if got := strings.Count(string(text), "/host-1/node-1\n"); got != want {
			t.Errorf("%s: in %d of %d groups:\n%s", task, got, want, text)
		}
	}
	checkOwnThreads(t)
}

// checkOwnThreads checks that all threads of this process leave the groups of the test.
func checkOwnThreads(t *testing.T) {
	t.Helper()
	tasks, err := filepath.Glob("/proc/self/task/*/cgroup")
	if err != nil {
		t.Fatal(err)
	}
	for _, task := range tasks {
		eventually(t, task+" is outside", func() bool {
			text, err := os.ReadFile(task)
			return err != nil || !strings.Contains(string(text), "host-1")
		})
	}
}

func measuresCPU(t *testing.T, m *Manager) {
	host, leaf := leaf(t, m)
	idle, err := host.Leaf("node-2")
	if err != nil {
		t.Fatal(err)
	}
	launch(t, "busy", leaf.Start)
	eventually(t, "the leaf and its host have used 50 ms of CPU", func() bool {
		node, err1 := leaf.Usage()
		all, err2 := host.Usage()
		if err := errors.Join(err1, err2); err != nil {
			t.Fatal(err)
		}
		return node.CPUSeconds >= 0.05 && all.CPUSeconds >= 0.05
	})
	if usage, err := idle.Usage(); err != nil || usage.CPUSeconds != 0 {
		t.Errorf("the other leaf used %v s, %v", usage.CPUSeconds, err)
	}
}

func usageIncludesRestarts(t *testing.T, m *Manager) {
	_, leaf := leaf(t, m)
	var before float64
	for range 2 {
		c := launch(t, "busy", leaf.Start)
		eventually(t, "50 ms more of CPU", func() bool {
			usage, err := leaf.Usage()
			if err != nil {
				t.Fatal(err)
			}
			return usage.CPUSeconds >= before+0.05
		})
		usage, err := leaf.Usage()
		if err != nil {
			t.Fatal(err)
		}
		before = usage.CPUSeconds
		c.end()
		if after, err := leaf.Usage(); err != nil || after.CPUSeconds < before {
			t.Fatalf("the CPU time decreased from %v to %v s, %v", before, after.CPUSeconds, err)
		}
	}
}

func measuresMemory(t *testing.T, m *Manager) {
	if g, ok := m.top.(*v2Group); ok && !slices.Contains(g.enable, "memory") {
		t.Log("without the memory controller: the sum of the processes")
	}
	host, leaf := leaf(t, m)
	launch(t, "threads", leaf.Start)
	node, err1 := leaf.Usage()
	all, err2 := host.Usage()
	if err := errors.Join(err1, err2); err != nil {
		t.Fatal(err)
	}
	if node.RSSBytes < 256<<10 || all.RSSBytes < 256<<10 {
		t.Errorf("node %d bytes, host %d bytes: want 256 KiB or more", node.RSSBytes, all.RSSBytes)
	}
}

// killReachesOtherSessions checks that KillAll kills a process in another session whose
// parent has died.
func killReachesOtherSessions(t *testing.T, m *Manager) {
	host, leaf := leaf(t, m)
	c := launch(t, "forks", leaf.Start)
	forked := c.pid(t)
	// The parent dies first, so that pid 1 becomes the parent of the forked process.
	c.end()
	if pids, err := leaf.group.pids(); err != nil || !slices.Equal(pids, []int{forked}) {
		t.Fatalf("the leaf contains %v, %v; want %d", pids, err, forked)
	}
	if err := host.KillAll(); err != nil {
		t.Fatal(err)
	}
	// A tree group cannot read the environment of a process that is about to end. So
	// KillAll may return a moment before its end.
	if err := within(killBound, func() (bool, error) {
		stat, err := proc.ReadStat("/", forked)
		return err != nil || stat.State == 'Z' || stat.State == 'X', nil
	}); err != nil {
		t.Errorf("process %d is still alive", forked)
	}
}

func stopAndContinue(t *testing.T, m *Manager) {
	host, leaf := leaf(t, m)
	c := launch(t, "forks", leaf.Start)
	both := []int{c.cmd.Process.Pid, c.pid(t)}
	for _, step := range []struct {
		sig     syscall.Signal
		stopped bool
	}{{syscall.SIGSTOP, true}, {syscall.SIGCONT, false}} {
		if err := host.Signal(step.sig); err != nil {
			t.Fatal(err)
		}
		for _, pid := range both {
			holds := func() bool {
				stat, err := proc.ReadStat("/", pid)
				return err == nil && (stat.State == 'T') == step.stopped
			}
			if step.stopped && !holds() { // Signal has waited for it
				t.Errorf("process %d runs after SIGSTOP", pid)
			}
			eventually(t, fmt.Sprintf("process %d is stopped: %v", pid, step.stopped), holds)
		}
	}
	if err := leaf.KillAll(); err != nil {
		t.Fatal(err)
	}
}

// thisProcessIsNeverKilled calls KillAll repeatedly while nodes are started. During a
// start, a thread of this process may be inside the group. The wrong outcome is that
// KillAll kills this process.
func thisProcessIsNeverKilled(t *testing.T, m *Manager) {
	starts := 50
	if _, tree := m.top.(*treeGroup); tree {
		starts = 10 // fewer, because KillAll is slow here: it reads all of /proc
	}
	host, leaf := leaf(t, m)
	stop := make(chan struct{})
	var killer sync.WaitGroup
	killer.Go(func() {
		for {
			select {
			case <-stop:
				return
			default:
			}
			if err := host.KillAll(); err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range starts {
		cmd := exec.Command("sleep", "1000")
		if err := leaf.Start(cmd); err != nil {
			t.Error(err)
			break
		}
		_ = cmd.Wait() // killed
	}
	close(stop)
	killer.Wait()
}

func names(t *testing.T, m *Manager) {
	for range 3 { // hosts of different systems may have the same name
		if _, err := m.NewHost("web-1", 0, 0); err != nil {
			t.Fatal(err)
		}
	}
	host, err := m.NewHost("db-1", 0, 0)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := host.Leaf("db-1"); err != nil {
		t.Fatal(err)
	}
	if _, err := host.Leaf("db-1"); err == nil {
		t.Error("a second leaf with the same name was created")
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a\nb"} {
		if _, err := m.NewHost(bad, 0, 0); err == nil {
			t.Errorf("host %q was created", bad)
		}
		if _, err := host.Leaf(bad); err == nil {
			t.Errorf("leaf %q was created", bad)
		}
	}
}

func closeRemovesEverything(t *testing.T, m *Manager) {
	host, leaf := leaf(t, m)
	c := launch(t, "busy", leaf.Start)
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if state := c.cmd.Wait(); state == nil || !strings.Contains(state.Error(), "killed") {
		t.Errorf("the child ended with %v, want SIGKILL", state)
	}
	for _, dir := range dirsOf(m.top) {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was not removed: %v", dir, err)
		}
	}
	if err := errors.Join(m.Close(), host.Remove()); err != nil {
		t.Errorf("the second call of Close or Remove: %v", err)
	}
	if _, err := m.NewHost("late", 0, 0); err == nil {
		t.Error("a closed manager created a host")
	}
	if _, err := host.Leaf("late"); err == nil {
		t.Error("a removed host created a leaf")
	}
}

// A harness with real-time priority can start children, and they have the ordinary one.
func realTimeHarnessStarts(t *testing.T, m *Manager) {
	setPriority := func(policy, priority uint32) error {
		threads, err := os.ReadDir("/proc/self/task")
		for _, thread := range threads {
			id, _ := strconv.Atoi(thread.Name())
			attr := &unix.SchedAttr{
				Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority, Flags: unix.SCHED_FLAG_RESET_ON_FORK,
			}
			if failed := unix.SchedSetAttr(id, attr, 0); !errors.Is(failed, unix.ESRCH) { // the thread has ended
				err = errors.Join(err, failed)
			}
		}
		return err
	}
	if err := setPriority(unix.SCHED_RR, 1); err != nil {
		t.Skipf("real-time priority is not permitted here: %v", err)
	}
	t.Cleanup(func() { _ = setPriority(unix.SCHED_NORMAL, 0) })
	_, leaf := leaf(t, m)
	for range 5 {
		child := launch(t, "busy", leaf.Start)
		attr, err := unix.SchedGetAttr(child.cmd.Process.Pid, 0)
		if err != nil || attr.Policy != unix.SCHED_NORMAL {
			t.Errorf("the child has policy %+v, %v, want the ordinary one", attr, err)
		}
	}
}

// TestDetectRemovesGroupsOfAKilledHarness also checks that Detect does not remove the
// groups of a living harness.
func TestDetectRemovesGroupsOfAKilledHarness(t *testing.T) {
	t.Parallel()
	m := Detect(Options{Prefix: prefix(t)})
	defer m.Close()
	if !m.Isolated() {
		t.Skipf("needs cgroups: %s", m.Describe())
	}
	c := launch(t, "harness", (*exec.Cmd).Start, "STAGEBENCH_BUDGET_PREFIX="+prefix(t))
	orphan := c.pid(t)
	var left []string
	find := func() []string {
		left = nil
		for _, dir := range dirsOf(m.top) {
			pattern := fmt.Sprintf("%s-%d-*", prefix(t), c.cmd.Process.Pid)
			found, err := filepath.Glob(filepath.Join(filepath.Dir(dir), pattern))
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, found...)
		}
		return left
	}
	if len(find()) == 0 {
		t.Fatal("the harness created no groups")
	}
	alive := Detect(Options{Prefix: prefix(t)})
	if err := alive.Close(); err != nil {
		t.Fatal(err)
	}
	if len(find()) == 0 {
		t.Fatal("the groups of a living harness were removed")
	}
	c.end()
	next := Detect(Options{Prefix: prefix(t)})
	defer next.Close()
	if len(find()) != 0 {
		t.Errorf("groups are left: %v", left)
	}
	if stat, err := proc.ReadStat("/", orphan); err == nil && stat.State != 'Z' {
		t.Errorf("process %d of the killed harness is still alive", orphan)
	}
}

// dirsOf lists the directories of a group, none for a process tree.
func dirsOf(group group) []string {
	switch g := group.(type) {
	case *v1Group:
		return g.dirs()
	case *v2Group:
		return []string{g.dir}
	}
	return nil
}
