package budget

import (
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// mountCase has the files of a machine, and the expected result of findMounts.
type mountCase struct {
	cgroup, mountinfo string
	v1                map[string]string
	v2                string
}

func mountCases() map[string]mountCase {
	return map[string]mountCase{
		"v1, separate hierarchies, nested in one": {
			"4:memory:/a/b\n2:cpuacct:/\n1:cpu:/\n0::/\n",
			`32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu
33 31 0:30 / /sys/fs/cgroup/cpuacct rw,relatime - cgroup cgroup rw,cpuacct
35 31 0:32 / /sys/fs/cgroup/memory rw,relatime - cgroup cgroup rw,memory
41 31 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw
`,
			map[string]string{
				"cpu": "/sys/fs/cgroup/cpu", "cpuacct": "/sys/fs/cgroup/cpuacct", "memory": "/sys/fs/cgroup/memory/a/b",
			},
			"/sys/fs/cgroup/unified",
		},
		"v1, cpu and cpuacct together": {
			"3:cpu,cpuacct:/user.slice\n1:name=systemd:/x\n",
			"26 25 0:23 / /sys/fs/cgroup/cpu,cpuacct rw shared:9 - cgroup cgroup rw,cpu,cpuacct\n",
			map[string]string{
				"cpu": "/sys/fs/cgroup/cpu,cpuacct/user.slice", "cpuacct": "/sys/fs/cgroup/cpu,cpuacct/user.slice",
			},
			"",
		},
		"v1 in a container that shows a part": {
			"1:cpu:/docker/abc/nested\n2:cpuacct:/elsewhere\n",
			`7 6 0:1 /docker/abc /sys/fs/cgroup/cpu ro - cgroup cgroup rw,cpu
8 6 0:2 /docker/abc /sys/fs/cgroup/cpuacct ro - cgroup cgroup rw,cpuacct
`,
			map[string]string{"cpu": "/sys/fs/cgroup/cpu/nested", "cpuacct": "/sys/fs/cgroup/cpuacct"},
			"",
		},
		"v2": {
			"0::/user.slice/session-1.scope\n",
			"30 24 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate\n",
			map[string]string{},
			"/sys/fs/cgroup/user.slice/session-1.scope",
		},
		"v2, own group outside of the namespace": {
			"0::/../outside\n",
			"30 24 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n",
			map[string]string{},
			"/sys/fs/cgroup/outside",
		},
		"a space in the mount point, a broken line, a second mount": {
			"0::/\n",
			"30 24 0:26 / /sys/fs/c\\040g rw - cgroup2 cgroup2 rw\nbroken\n31 24 0:26 / /later rw - cgroup2 cgroup2 rw\n",
			map[string]string{},
			"/sys/fs/c g",
		},
	}
}

func TestFindMounts(t *testing.T) {
	t.Parallel()
	for name, c := range mountCases() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			root := t.TempDir()
			put(t, filepath.Join(root, "proc/thread-self/cgroup"), c.cgroup)
			put(t, filepath.Join(root, "proc/self/mountinfo"), c.mountinfo)
			found, err := findMounts(root)
			if err != nil {
				t.Fatal(err)
			}
			want := map[string]string{}
			for controller, dir := range c.v1 {
				want[controller] = filepath.Join(root, dir)
			}
			if diff := cmp.Diff(want, found.v1); diff != "" {
				t.Error(diff)
			}
			if c.v2 != "" {
				c.v2 = filepath.Join(root, c.v2)
			}
			if found.v2 != c.v2 {
				t.Errorf("v2 %q, want %q", found.v2, c.v2)
			}
		})
	}
}

func TestFindMountsWithoutCgroups(t *testing.T) {
	t.Parallel()
	root := t.TempDir()
	if _, err := findMounts(root); err == nil {
		t.Error("found mounts where there is no procfs")
	}
	put(t, filepath.Join(root, "proc/thread-self/cgroup"), "")
	if _, err := findMounts(root); err == nil {
		t.Error("found mounts on a kernel without cgroups")
	}
}
