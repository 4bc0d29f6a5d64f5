package budget

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/targets/proc"
)

// groupsUnderTest returns a manager per kind of group that this machine
// permits, and skips when a kind is not there.
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
			return Unlimited("asked for")
		},
	}
}

// realV2 makes groups in a real v2 hierarchy, with the cpu controller where it
// is there and without where v1 has it: births, accounts, signals and kills
// need none.
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

// prefix keeps the groups of tests apart from those of anybody else.
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
			"a child is born inside":        bornInside,
			"CPU time is accounted":         accountsCPU,
			"the account survives restarts": accountSurvivesRestarts,
			"memory is accounted":           accountsMemory,
			"kill reaches who left":         killReachesWhoLeft,
			"stop and continue":             stopAndContinue,
			"this process is never hit":     thisProcessIsNeverHit,
			"names":                         names,
			"close removes everything":      closeRemovesEverything,
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

func bornInside(t *testing.T, m *Manager) {
	_, leaf := leaf(t, m)
	c := launch(t, "threads", leaf.Start)
	pids, err := leaf.group.pids()
	if err != nil || !slices.Equal(pids, []int{c.cmd.Process.Pid}) {
		t.Fatalf("the leaf holds %v, %v; want %d", pids, err, c.cmd.Process.Pid)
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
	ownThreads(t)
}

// ownThreads fails when a thread of this process stayed in a group of ours.
func ownThreads(t *testing.T) {
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

func accountsCPU(t *testing.T, m *Manager) {
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

func accountSurvivesRestarts(t *testing.T, m *Manager) {
	_, leaf := leaf(t, m)
	var before float64
	for range 2 {
		c := launch(t, "busy", leaf.Start)
		eventually(t, "50 ms of CPU on top", func() bool {
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
			t.Fatalf("the account went back from %v to %v s, %v", before, after.CPUSeconds, err)
		}
	}
}

func accountsMemory(t *testing.T, m *Manager) {
	if g, ok := m.top.(*v2Group); ok && !slices.Contains(g.enable, "memory") {
		t.Log("without the memory controller: by process")
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

func killReachesWhoLeft(t *testing.T, m *Manager) {
	host, leaf := leaf(t, m)
	c := launch(t, "forks", leaf.Start)
	forked := c.pid(t)
	// The one that forked dies first, so that the other hangs below pid 1.
	c.end()
	if pids, err := leaf.group.pids(); err != nil || !slices.Equal(pids, []int{forked}) {
		t.Fatalf("the leaf holds %v, %v; want %d", pids, err, forked)
	}
	if err := host.KillAll(); err != nil {
		t.Fatal(err)
	}
	// Without a group to look into, one that is dying can look like none of ours
	// a moment before it is dead.
	if err := within(killBound, func() (bool, error) {
		stat, err := proc.ReadStat("/", forked)
		return err != nil || stat.State == 'Z' || stat.State == 'X', nil
	}); err != nil {
		t.Errorf("process %d lives on", forked)
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
			eventually(t, fmt.Sprintf("process %d is stopped: %v", pid, step.stopped), func() bool {
				stat, err := proc.ReadStat("/", pid)
				return err == nil && (stat.State == 'T') == step.stopped
			})
		}
	}
	if err := leaf.KillAll(); err != nil {
		t.Fatal(err)
	}
}

// thisProcessIsNeverHit kills a host again and again while nodes are started
// on it. The wrong outcome would be the death of this very process, of which a
// thread is inside the group during a start.
func thisProcessIsNeverHit(t *testing.T, m *Manager) {
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
	for range 50 {
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
	for range 3 { // hosts of several systems may have one name
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
		t.Error("a second leaf of the same name was made")
	}
	for _, bad := range []string{"", ".", "..", "a/b", "a\nb"} {
		if _, err := m.NewHost(bad, 0, 0); err == nil {
			t.Errorf("host %q was made", bad)
		}
		if _, err := host.Leaf(bad); err == nil {
			t.Errorf("leaf %q was made", bad)
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
		t.Errorf("the child ended with %v, want it killed", state)
	}
	for _, dir := range dirsOf(m.top) {
		if _, err := os.Stat(dir); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s: %v, want it removed", dir, err)
		}
	}
	if err := errors.Join(m.Close(), host.Remove()); err != nil {
		t.Errorf("once more: %v", err)
	}
	if _, err := m.NewHost("late", 0, 0); err == nil {
		t.Error("a closed manager made a host")
	}
	if _, err := host.Leaf("late"); err == nil {
		t.Error("a removed host made a leaf")
	}
}

func TestAKilledHarnessIsCleanedUpAfter(t *testing.T) {
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
			found, err := filepath.Glob(filepath.Join(filepath.Dir(dir), fmt.Sprintf("%s-%d-*", prefix(t), c.cmd.Process.Pid)))
			if err != nil {
				t.Fatal(err)
			}
			left = append(left, found...)
		}
		return left
	}
	if len(find()) == 0 {
		t.Fatal("the harness made no groups")
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
		t.Errorf("left over: %v", left)
	}
	if stat, err := proc.ReadStat("/", orphan); err == nil && stat.State != 'Z' {
		t.Errorf("its orphan %d lives on", orphan)
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

// TestABusyHostIsHeldToItsBudget asks the kernel's own account: CPU time by
// quota periods, not by the clock on the wall.
func TestABusyHostIsHeldToItsBudget(t *testing.T) {
	t.Parallel()
	m := Detect(Options{Prefix: prefix(t)})
	defer func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	}()
	if !m.Isolated() {
		t.Skipf("needs cgroups: %s", m.Describe())
	}
	host, err := m.NewHost("host-1", 0.2, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := host.Leaf("node-1")
	if err != nil {
		t.Fatal(err)
	}
	launch(t, "busy", leaf.Start)
	if usage := hostUsage(t, host); usage.ThrottledPeriods != 0 {
		t.Errorf("throttled before the budget was applied: %+v", usage)
	}
	if err := host.Apply(); err != nil {
		t.Fatal(err)
	}
	// The first periods are cut off: the quota begins full.
	usageAfter := func(periods int64) Usage {
		var usage Usage
		eventually(t, fmt.Sprintf("%d quota periods", periods), func() bool {
			usage = hostUsage(t, host)
			return usage.Periods >= periods
		})
		return usage
	}
	to := usageAfter(20)
	from := to
	for attempt := 1; ; attempt++ { // the kernel's two accounts are not read at the same instant
		from, to = to, usageAfter(to.Periods+200)
		periods := to.Periods - from.Periods
		used, budget := to.CPUSeconds-from.CPUSeconds, float64(periods)*host.quota.Quota.Seconds()
		t.Logf("%d periods: %.1f ms of CPU, budget %.1f ms, throttled in %d periods for %.2f s",
			periods, used*1e3, budget*1e3, to.ThrottledPeriods-from.ThrottledPeriods, to.ThrottledSeconds-from.ThrottledSeconds)
		if used <= 1.15*budget {
			break
		}
		if attempt == 3 {
			t.Fatalf("used %.1f ms of CPU in %d periods, the budget is %.1f ms", used*1e3, periods, budget*1e3)
		}
	}
	if to.ThrottledPeriods == from.ThrottledPeriods || to.ThrottledSeconds <= from.ThrottledSeconds {
		t.Errorf("never throttled: %+v to %+v", from, to)
	}
	if err := host.Lift(); err != nil {
		t.Fatal(err)
	}
	lifted := hostUsage(t, host)
	eventually(t, "without the budget it uses CPU and is not throttled", func() bool {
		usage := hostUsage(t, host)
		return usage.CPUSeconds > lifted.CPUSeconds+0.1 && usage.ThrottledPeriods <= lifted.ThrottledPeriods+1
	})
}

func TestAHostOverItsMemoryIsKilledAndTold(t *testing.T) {
	t.Parallel()
	m := Detect(Options{Prefix: prefix(t)})
	defer m.Close()
	if !m.Isolated() || strings.Contains(m.Describe(), "no memory limits") {
		t.Skipf("needs cgroups with memory limits: %s", m.Describe())
	}
	host, err := m.NewHost("host-1", 0, 96<<20)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := host.Leaf("node-1")
	if err != nil {
		t.Fatal(err)
	}
	c := launch(t, "hungry", leaf.Start)
	if usage, err := leaf.Usage(); err != nil || usage.OOMKills != 0 {
		t.Fatalf("at the start: %+v, %v", usage, err)
	}
	if _, err := c.stdin.Write([]byte("\n")); err != nil {
		t.Fatal(err)
	}
	if err := c.cmd.Wait(); err == nil || err.Error() != "signal: killed" {
		t.Errorf("the child ended with %v", err)
	}
	if usage, err := leaf.Usage(); err != nil || usage.OOMKills != 1 {
		t.Errorf("in the end: %+v, %v", usage, err)
	}
}

func hostUsage(t *testing.T, host *Host) Usage {
	t.Helper()
	usage, err := host.Usage()
	if err != nil {
		t.Fatal(err)
	}
	return usage
}
