package budget

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/targets/proc"
)

// v2Group is one group in the unified hierarchy.
type v2Group struct {
	files  filesystem
	root   string // directory that contains proc
	dir    string
	enable []string // controllers for nested groups
}

// detectV2 creates the manager's own group. It tries this process's group first, which
// works if that is delegated to this user, and then the groups above. The kernel has
// two rules (Documentation/admin-guide/cgroup-v2.rst). A group that gives controllers
// to nested groups must not contain processes. And a process that starts another one
// in a group needs write access to the nearest common ancestor of both groups.
func (m *Manager) detectV2(found mounts, self proc.Owner) error {
	// The groups above that already give the cpu controller to nested groups come
	// first: there we change nothing for other processes.
	own, given, others := []string{found.v2}, []string(nil), []string(nil)
	for dir := found.v2; dir != found.v2Mount && dir != filepath.Dir(dir); {
		dir = filepath.Dir(dir)
		if slices.Contains(controllers(dir, "cgroup.subtree_control"), "cpu") {
			given = append(given, dir)
		} else {
			others = append(others, dir)
		}
	}
	var first, last error
	for _, dir := range slices.Concat(own, given, others) {
		if last = m.makeTopV2(dir, found.v2, self); last == nil {
			return nil
		}
		first = cmp.Or(first, last)
	}
	// Report the error of the last attempt, at the root. But if this process's group
	// is writable and only lacks the cpu controller, report that: the user can fix it.
	if errors.Is(last, fs.ErrPermission) && errors.Is(first, errNoCPUController) &&
		unix.Access(filepath.Join(found.v2, "cgroup.procs"), unix.W_OK) == nil {
		last = first
	}
	return fmt.Errorf("%w; %s", last, adviceV2(last))
}

func adviceV2(err error) string {
	switch {
	case errors.Is(err, errNoCPUController):
		return "run as root, or delegate the cpu controller: systemctl edit user@.service, Delegate=cpu memory pids"
	case errors.Is(err, syscall.EROFS):
		return adviceContainer
	default:
		return "run as root, or in a delegated group: systemd-run --user --scope -p Delegate=yes stagebench ..."
	}
}

const adviceContainer = "a container needs a writable cgroup mount: docker run --privileged --cgroupns=private"

var errNoCPUController = errors.New("no cpu controller")

// makeTopV2 tries to create the manager's own group below dir. own is the directory of
// this process's group.
func (m *Manager) makeTopV2(dir, own string, self proc.Owner) error {
	available := controllers(dir, "cgroup.controllers")
	if !slices.Contains(available, "cpu") {
		return fmt.Errorf("%w in %s", errNoCPUController, dir)
	}
	if err := unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK); err != nil {
		return fmt.Errorf("write to %s: %w", dir, err)
	}
	base := &v2Group{files: m.opts.files, root: m.opts.root, dir: dir, enable: []string{"cpu"}}
	m.describe = "cgroup v2"
	if slices.Contains(available, "memory") {
		base.enable = []string{"cpu", "memory"}
	} else {
		m.describe += ", no memory limits"
	}
	err := m.makeTop(base, self)
	if errors.Is(err, syscall.EBUSY) && dir == own && m.leave(base, self) {
		err = m.makeTop(base, self)
	}
	if err != nil {
		return errors.Join(err, m.home())
	}
	return nil
}

// leave moves this process from its group into a nested group, so that the group can
// give controllers to nested groups. It does so only if the group contains no other
// process, because the processes of others must not be moved. It reports success.
func (m *Manager) leave(own *v2Group, self proc.Owner) bool {
	pids, err := procsIn(own.dir)
	if err != nil || len(pids) != 1 || pids[0] != self.PID {
		return false
	}
	nested := filepath.Join(own.dir, topName(m.opts.Prefix, self, 0))
	pid := strconv.Itoa(self.PID)
	if own.files.mkdir(nested) != nil {
		return false
	}
	if own.files.write(filepath.Join(nested, "cgroup.procs"), pid) != nil {
		_ = own.files.rmdir(nested)
		return false
	}
	m.home = func() error {
		// A process cannot move into a group that gives controllers.
		for _, name := range own.enable {
			_ = own.files.write(filepath.Join(own.dir, "cgroup.subtree_control"), "-"+name)
		}
		if err := own.files.write(filepath.Join(own.dir, "cgroup.procs"), pid); err != nil {
			return fmt.Errorf("return to %s: %w", own.dir, err)
		}
		m.home = func() error { return nil }
		return removeGroups(own.files, nested)
	}
	return true
}

// controllers reads a file that lists controllers. It returns none if there is no
// such file.
func controllers(dir, file string) []string {
	text, _ := os.ReadFile(filepath.Join(dir, file))
	return strings.Fields(string(text))
}

func (g *v2Group) child(name string) (group, error) {
	given := controllers(g.dir, "cgroup.subtree_control")
	for _, name := range g.enable {
		if !slices.Contains(given, name) {
			if err := g.files.write(filepath.Join(g.dir, "cgroup.subtree_control"), "+"+name); err != nil {
				return nil, fmt.Errorf("enable the %s controller for groups in %s: %w", name, g.dir, err)
			}
		}
	}
	child := &v2Group{files: g.files, root: g.root, dir: filepath.Join(g.dir, name), enable: g.enable}
	if err := g.files.mkdir(child.dir); err != nil {
		return nil, err
	}
	return child, nil
}

// start starts the command inside the group: the kernel creates the process there
// (clone3 with CLONE_INTO_CGROUP, Linux 5.7).
func (g *v2Group) start(cmd *exec.Cmd) error {
	dir, err := os.Open(g.dir)
	if err != nil {
		return err
	}
	defer dir.Close()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	return cmd.Start()
}

// limitCPU writes the burst 0 first. So the burst is never larger than the quota,
// which the kernel would refuse.
func (g *v2Group) limitCPU(q Quota) error {
	settings := []setting{{"cpu.max.burst", "0"}, {"cpu.max", "max"}}
	if q != (Quota{}) {
		settings[1].text = micros(q.Quota) + " " + micros(q.Period)
		settings = append(settings, setting{"cpu.max.burst", micros(q.Quota)})
	}
	return set(g.files, g.dir, settings...)
}

func (g *v2Group) limitMemory(bytes int64) error {
	if !slices.Contains(g.enable, "memory") {
		return nil
	}
	if err := g.files.write(filepath.Join(g.dir, "memory.max"), strconv.FormatInt(bytes, 10)); err != nil {
		return err
	}
	// A swapping host would measure the disk. Without swap the file does not exist,
	// and the error is ignored.
	_ = g.files.write(filepath.Join(g.dir, "memory.swap.max"), "0")
	return nil
}

func (g *v2Group) usage() (Usage, error) {
	stat, err := readTable(filepath.Join(g.dir, "cpu.stat"))
	if err != nil {
		return Usage{}, err
	}
	usage := Usage{
		CPUSeconds: float64(stat["usage_usec"]) / 1e6, ThrottledSeconds: float64(stat["throttled_usec"]) / 1e6,
		Periods: stat["nr_periods"], ThrottledPeriods: stat["nr_throttled"],
	}
	if !slices.Contains(g.enable, "memory") {
		usage.RSSBytes, err = residentOf(g.root, g)
		return usage, err
	}
	return usage.withMemory(g.dir, "anon", "file_mapped", "memory.events")
}

func (g *v2Group) pids() ([]int, error) { return procsIn(g.dir) }

// kill kills all members with one write (Linux 5.14). On older kernels it kills them
// one by one.
func (g *v2Group) kill(pids []int) error {
	err := g.files.write(filepath.Join(g.dir, "cgroup.kill"), "1")
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return killProcs(pids)
}

func (g *v2Group) remove() error { return removeGroups(g.files, g.dir) }
