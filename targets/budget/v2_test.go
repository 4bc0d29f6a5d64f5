package budget

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/targets/proc"
)

const scope = "/user.slice/user@1000.service/app.slice/run-u1.scope"

// give gives controllers to the group at path, like a service manager.
func give(t *testing.T, fake *fakeV2, path, controllers string) {
	t.Helper()
	dir := fake.mount
	put(t, filepath.Join(dir, "cgroup.subtree_control"), controllers)
	parts := strings.Split(strings.Trim(path, "/"), "/")
	for i, name := range parts {
		dir = filepath.Join(dir, name)
		put(t, filepath.Join(dir, "cgroup.controllers"), controllers)
		if i < len(parts)-1 {
			put(t, filepath.Join(dir, "cgroup.subtree_control"), controllers)
		}
	}
}

func detectFake(t *testing.T, root string, fake *fakeV2) *Manager {
	t.Helper()
	m := Detect(Options{Prefix: "sb", root: root, files: fake})
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// top returns the manager's own group as a path below the mount.
func top(t *testing.T, fake *fakeV2, m *Manager) string {
	t.Helper()
	group, ok := m.top.(*v2Group)
	if !ok {
		t.Fatalf("not a v2 group: %s", m.Describe())
	}
	rel, err := filepath.Rel(fake.mount, group.dir)
	if err != nil {
		t.Fatal(err)
	}
	return rel
}

func TestV2DelegatedScope(t *testing.T) {
	t.Parallel()
	root, fake := newFakeV2(t, scope, "cpu memory pids")
	give(t, fake, scope, "cpu memory pids")
	m := detectFake(t, root, fake)
	if m.Describe() != "cgroup v2" || !m.Isolated() {
		t.Fatalf("describe %q, isolated %v", m.Describe(), m.Isolated())
	}
	own := scope[1:]
	if dir := filepath.Dir(top(t, fake, m)); dir != own {
		t.Errorf("our group is in %s, want %s", dir, own)
	}
	if got := fake.read(own, "cgroup.procs"); got != "" {
		t.Errorf("the first group still contains %q, so it cannot give controllers", got)
	}
	host, err := m.NewHost("web-1", 0.1, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := host.Leaf("web-1"); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(top(t, fake, m), "web-1")
	check := func(when, file, want string) {
		t.Helper()
		if got := fake.read(dir, file); got != want {
			t.Errorf("%s: %s contains %q, want %q", when, file, got, want)
		}
	}
	check("created", "cpu.max", "max 100000")
	check("created", "memory.max", "67108864")
	check("created", "cgroup.subtree_control", "cpu memory")
	for range 2 {
		if err := host.Apply(); err != nil {
			t.Fatal(err)
		}
		check("applied", "cpu.max", "4000 40000")
		check("applied", "cpu.max.burst", "4000")
	}
	if err := host.Lift(); err != nil {
		t.Fatal(err)
	}
	check("lifted", "cpu.max", "max 100000")
	check("lifted", "cpu.max.burst", "0")

	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if got := fake.read(own, "cgroup.procs"); got != fmt.Sprint(os.Getpid()) {
		t.Errorf("after Close the first group contains %q, want this process", got)
	}
	if left, _ := filepath.Glob(filepath.Join(fake.mount, own, "sb-*")); len(left) > 0 {
		t.Errorf("groups are left: %v", left)
	}
}

// TestV2GroupIsShared checks that the manager uses a parent group if its group contains
// other processes.
func TestV2GroupIsShared(t *testing.T) {
	t.Parallel()
	root, fake := newFakeV2(t, scope, "cpu memory")
	give(t, fake, scope, "cpu memory")
	put(t, filepath.Join(fake.mount, scope, "cgroup.procs"), fmt.Sprintf("%d\n1\n", os.Getpid()))
	m := detectFake(t, root, fake)
	if dir := filepath.Dir(top(t, fake, m)); "/"+dir != filepath.Dir(scope) {
		t.Errorf("our group is in %s, want %s", dir, filepath.Dir(scope))
	}
	if got := fake.read(scope, "cgroup.procs"); !strings.HasSuffix(got, "\n1") {
		t.Errorf("the other process was moved: %q", got)
	}
}

func TestV2RootWithoutDelegation(t *testing.T) {
	t.Parallel()
	root, fake := newFakeV2(t, "/user.slice/session-1.scope", "cpu memory")
	m := detectFake(t, root, fake)
	if dir := filepath.Dir(top(t, fake, m)); dir != "." {
		t.Errorf("our group is in %s, want the root", dir)
	}
}

func TestV2WithoutMemory(t *testing.T) {
	t.Parallel()
	root, fake := newFakeV2(t, "/", "cpu")
	m := detectFake(t, root, fake)
	if got, want := m.Describe(), "cgroup v2, no memory limits"; got != want {
		t.Errorf("describe %q, want %q", got, want)
	}
	if _, err := m.NewHost("h", 1, 1<<20); err != nil {
		t.Error(err)
	}
}

func TestV2Usage(t *testing.T) {
	t.Parallel()
	root, fake := newFakeV2(t, "/", "cpu memory")
	m := detectFake(t, root, fake)
	host, err := m.NewHost("h", 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join(fake.mount, top(t, fake, m), "h")
	put(t, filepath.Join(dir, "cpu.stat"),
		"usage_usec 1500000\nuser_usec 1\nnr_periods 10\nnr_throttled 4\nthrottled_usec 250000\n")
	put(t, filepath.Join(dir, "memory.stat"), "anon 4096\nfile 999\nfile_mapped 8192\n")
	put(t, filepath.Join(dir, "memory.events"), "low 0\noom 1\noom_kill 2\n")
	usage, err := host.Usage()
	want := Usage{CPUSeconds: 1.5, ThrottledSeconds: 0.25, Periods: 10, ThrottledPeriods: 4, RSSBytes: 12288, OOMKills: 2}
	if err != nil || usage != want {
		t.Errorf("usage %+v, %v; want %+v", usage, err, want)
	}
}

// TestV2NotIsolated checks the advice of Describe where budgets cannot be enforced.
func TestV2NotIsolated(t *testing.T) {
	t.Parallel()
	for name, c := range map[string]struct {
		prepare func(t *testing.T, root string, fake *fakeV2)
		want    string
	}{
		"not delegated": {
			func(t *testing.T, _ string, fake *fakeV2) {
				give(t, fake, "/user.slice", "cpu memory")
				for _, dir := range []string{"", "user.slice"} {
					fake.deny[filepath.Join(fake.mount, dir)] = syscall.EACCES
				}
			},
			"systemd-run --user --scope -p Delegate=yes",
		},
		"read-only": {
			func(t *testing.T, _ string, fake *fakeV2) {
				give(t, fake, "/user.slice", "cpu memory")
				for _, dir := range []string{"", "user.slice"} {
					fake.deny[filepath.Join(fake.mount, dir)] = syscall.EROFS
				}
			},
			"docker run --privileged",
		},
		"delegated, but without the cpu controller": {
			func(_ *testing.T, _ string, fake *fakeV2) { fake.deny[fake.mount] = syscall.EACCES },
			"Delegate=cpu memory pids",
		},
		"without the cpu controller": {
			func(t *testing.T, _ string, fake *fakeV2) {
				put(t, filepath.Join(fake.mount, "cgroup.controllers"), "memory pids")
			},
			"no cpu controller in ",
		},
		"no hierarchy": {
			func(t *testing.T, root string, _ *fakeV2) {
				put(t, filepath.Join(root, "proc/self/mountinfo"), "22 27 0:21 / /proc rw - proc proc rw\n")
			},
			"no cgroup hierarchy is mounted",
		},
		"a kernel without limits": {
			func(t *testing.T, _ string, fake *fakeV2) {
				fake.deny[filepath.Join(fake.mount, topName("sb", self(t), 1))] = syscall.EOPNOTSUPP
			},
			"this kernel accepts no CPU limits",
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root, fake := newFakeV2(t, "/user.slice", "cpu memory")
			c.prepare(t, root, fake)
			m := detectFake(t, root, fake)
			if m.Isolated() || !strings.HasPrefix(m.Describe(), "not isolated: ") || !strings.Contains(m.Describe(), c.want) {
				t.Errorf("describe %q, want %q in it", m.Describe(), c.want)
			}
			host, err := m.NewHost("h", 0.1, 1<<20)
			if err != nil {
				t.Fatal(err)
			}
			if err := host.Apply(); err != nil || host.Isolated() {
				t.Errorf("apply: %v, isolated %v", err, host.Isolated())
			}
		})
	}
}

// self returns the owner of the groups of this process on the fake machine.
func self(t *testing.T) proc.Owner {
	t.Helper()
	owner, err := proc.Self("/")
	if err != nil {
		t.Fatal(err)
	}
	owner.Namespace = 0 // the fake machine has no file of the namespace
	return owner
}

// TestV2SweepsOnlyDeadOwners checks that Detect removes a group only if its owner is
// dead and was in the same pid namespace.
func TestV2SweepsOnlyDeadOwners(t *testing.T) {
	t.Parallel()
	root, fake := newFakeV2(t, "/", "cpu memory")
	dead := self(t)
	dead.Start++
	foreign := dead
	foreign.Namespace = 7
	for _, name := range []string{
		topName("sb", dead, 1) + "/host/leaf", topName("sb", self(t), 9), topName("sb", foreign, 1),
		"sb-other", topName("xx", dead, 1),
	} {
		dir := fake.mount
		for part := range strings.SplitSeq(name, "/") {
			dir = filepath.Join(dir, part)
			fake.populate(dir, "")
		}
	}
	detectFake(t, root, fake)
	for name, want := range map[string]bool{
		topName("sb", dead, 1): false, topName("sb", self(t), 9): true, topName("sb", foreign, 1): true,
		"sb-other": true, topName("xx", dead, 1): true,
	} {
		if _, err := os.Stat(filepath.Join(fake.mount, name)); (err == nil) != want {
			t.Errorf("%s exists: %v, want %v", name, err == nil, want)
		}
	}
}
