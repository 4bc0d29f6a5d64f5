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
	root   string // where procfs is found
	dir    string
	enable []string // controllers for nested groups
}

// detectV2 looks for a group below which ours can be: the own one where it is
// delegated to us, or else the nearest one above. The kernel wants two things
// (Documentation/admin-guide/cgroup-v2.rst): a group with nested groups that
// have controllers holds no process itself, and who starts a process in a
// group may write to the nearest common ancestor of it and of his own.
func (m *Manager) detectV2(found mounts, self proc.Owner) error {
	// Where the cpu controller is given to nested groups already, we change
	// nothing for others. That is preferred, after the own group.
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
	// The last try, at the root, says what stopped us. But where the own group
	// is ours and only lacks the controller, that is what can be helped.
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
		return "run as root, or in a group of its own: systemd-run --user --scope -p Delegate=yes stagebench ..."
	}
}

const adviceContainer = "a container needs a writable cgroup mount: docker run --privileged --cgroupns=private"

var errNoCPUController = errors.New("no cpu controller")

// makeTopV2 tries to make the manager's group below dir.
func (m *Manager) makeTopV2(dir, own string, self proc.Owner) error {
	available := controllers(dir, "cgroup.controllers")
	if !slices.Contains(available, "cpu") {
		return fmt.Errorf("%w in %s", errNoCPUController, dir)
	}
	if err := unix.Access(filepath.Join(dir, "cgroup.procs"), unix.W_OK); err != nil {
		return fmt.Errorf("write to %s: %w", dir, err)
	}
	sweep(m.opts, dir)
	base := &v2Group{files: m.opts.files, root: m.opts.Root, dir: dir, enable: []string{"cpu"}}
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

// leave moves this process out of its own group into a nested one, which makes
// room for controllers. It does so only once and only when nobody else is in
// the group: other people's processes are not ours to move.
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
		// A group that gives controllers takes no process back.
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

// controllers reads a file that lists controllers; without it there are none.
func controllers(dir, file string) []string {
	text, _ := os.ReadFile(filepath.Join(dir, file))
	return strings.Fields(string(text))
}

func (g *v2Group) child(name string) (group, error) {
	given := controllers(g.dir, "cgroup.subtree_control")
	for _, name := range g.enable {
		if !slices.Contains(given, name) {
			if err := g.files.write(filepath.Join(g.dir, "cgroup.subtree_control"), "+"+name); err != nil {
				return nil, fmt.Errorf("give %s to groups in %s: %w", name, g.dir, err)
			}
		}
	}
	child := &v2Group{files: g.files, root: g.root, dir: filepath.Join(g.dir, name), enable: g.enable}
	if err := g.files.mkdir(child.dir); err != nil {
		return nil, err
	}
	return child, nil
}

// start has the kernel create the child inside the group (clone3,
// CLONE_INTO_CGROUP, Linux 5.7).
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

// limitCPU never lets the burst be larger than the quota, which the kernel refuses.
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
	// A host that swaps would measure the disk; without swap there is no file.
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

// kill has the kernel kill all at once (Linux 5.14), or does it one by one.
func (g *v2Group) kill(pids []int) error {
	err := g.files.write(filepath.Join(g.dir, "cgroup.kill"), "1")
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return killProcs(pids)
}

func (g *v2Group) remove() error { return removeGroups(g.files, g.dir) }
