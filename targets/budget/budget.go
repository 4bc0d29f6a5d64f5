// Package budget holds hosts to their CPU and memory and accounts for what
// they and their nodes use: with cgroup v1, with cgroup v2, or, where neither
// is permitted, by the process tree without any limit.
//
// A Manager owns one group in each hierarchy; in it every host has a group
// that carries the limits, and in that every node has a Leaf, so that its CPU
// time is exact. Processes are born in their leaf: not one instruction of
// theirs is accounted elsewhere, and they and all that they fork can be
// signalled and killed as one, whatever process group they moved to.
//
// The order of calls is Detect, NewHost, Leaf, Leaf.Start, Host.Apply when the
// host's nodes are ready, Usage as often as wanted, Close. All methods may be
// called concurrently. Times are seconds of CPU, summed over CPUs; memory is
// bytes. The package never chooses a budget, never restarts a process and
// never touches groups that are not its own, save those that a killed harness
// left behind. It works on Linux only.
package budget

import (
	"cmp"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/stagebench/stagebench/targets/proc"
)

// Options say how hosts are held to their budgets. The zero value is usable.
type Options struct {
	// Prefix begins the names of our groups, "" = "stagebench". Leftovers of a
	// killed harness are found by it.
	Prefix string
	// Root is where /proc and /sys are found, "" = "/".
	Root string

	files filesystem // nil = the kernel's
}

// Manager makes hosts.
type Manager struct {
	opts     Options
	describe string
	isolated bool
	top      group
	home     func() error // undoes what Detect did to this process's own group

	mu     sync.Mutex
	hosts  map[string]*Host // guarded by mu: by the name of their group
	closed bool             // guarded by mu
}

func newManager(opts Options) *Manager {
	opts.Prefix, opts.Root = cmp.Or(opts.Prefix, "stagebench"), cmp.Or(opts.Root, "/")
	if opts.files == nil {
		opts.files = kernelFiles{}
	}
	return &Manager{opts: opts, hosts: map[string]*Host{}, home: func() error { return nil }}
}

// Detect finds out what this machine permits and removes the groups of
// harnesses that were killed. It never fails: where no budget can be enforced,
// the manager accounts only, and Describe says why and what to do about it.
func Detect(opts Options) *Manager {
	m := newManager(opts)
	if err := m.detect(); err != nil {
		m.account(err.Error())
	}
	return m
}

// Unlimited returns a manager that accounts by the process tree and enforces
// nothing. The reason is what Describe says.
func Unlimited(reason string) *Manager {
	m := newManager(Options{})
	m.account(reason)
	return m
}

// account makes the manager account by the process tree. The random name keeps
// managers from taking each other's processes for their own.
func (m *Manager) account(reason string) {
	m.top, m.describe = newTree(m.opts.Root, rand.Text()), "not isolated: "+reason
}

func (m *Manager) detect() error {
	found, err := findMounts(m.opts.Root)
	if err != nil {
		return err
	}
	self, err := proc.Self(m.opts.Root)
	if err != nil {
		return fmt.Errorf("identify this process: %w", err)
	}
	switch {
	case found.v1["cpu"] != "":
		err = m.detectV1(found, self)
	case found.v2 != "":
		err = m.detectV2(found, self)
	default:
		err = errors.New("no cgroup hierarchy is mounted; a container needs one at /sys/fs/cgroup")
	}
	m.isolated = err == nil
	return err
}

// makeTop makes the manager's own group below base, under the first name that is
// free, once the kernel has shown that it takes a CPU limit there: it may be built
// without them.
func (m *Manager) makeTop(base group, self proc.Owner) error {
	var top group
	err := fs.ErrExist
	for n := 1; errors.Is(err, fs.ErrExist); n++ {
		top, err = base.child(topName(m.opts.Prefix, self, n))
	}
	if err != nil {
		return err
	}
	if err := top.limitCPU(Quota{}); err != nil {
		return errors.Join(fmt.Errorf("this kernel takes no CPU limits: %w", err), top.remove())
	}
	m.top = top
	return nil
}

// Describe says in one line how hosts are held to their budgets: "cgroup v1",
// "cgroup v2", or "not isolated: " with the reason and what to do.
func (m *Manager) Describe() string { return m.describe }

// Isolated reports whether budgets are enforced.
func (m *Manager) Isolated() bool { return m.isolated }

// NewHost makes a host of that many cores and bytes. 0 cores, or 0 bytes, is
// no limit. The CPU budget is in force from Apply on, the memory limit at once.
// Several hosts may have one name.
func (m *Manager) NewHost(name string, cores float64, memoryBytes int64) (*Host, error) {
	host := &Host{unit: unit{kind: "host", name: name}, manager: m, leaves: map[string]*Leaf{}}
	if cores != 0 {
		var err error
		if host.quota, err = QuotaFor(cores); err != nil {
			return nil, fmt.Errorf("host %s: %w", name, err)
		}
	}
	if err := checkName(name); err != nil {
		return nil, fmt.Errorf("host %q: %w", name, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.closed {
		return nil, fmt.Errorf("host %s: the budget manager is closed", name)
	}
	host.groupName = name
	for n := 2; m.hosts[host.groupName] != nil; n++ {
		host.groupName = fmt.Sprintf("%s.%d", name, n)
	}
	var err error
	if host.group, err = m.top.child(host.groupName); err != nil {
		return nil, fmt.Errorf("host %s: %w", name, err)
	}
	if memoryBytes > 0 {
		if err := host.group.limitMemory(memoryBytes); err != nil {
			return nil, errors.Join(fmt.Errorf("limit the memory of host %s: %w", name, err), host.group.remove())
		}
	}
	m.hosts[host.groupName] = host
	return host, nil
}

// Close removes every host, with a bounded wait for its processes, and the
// manager's own groups. It may be called again.
func (m *Manager) Close() error {
	m.mu.Lock()
	hosts := slices.Collect(maps.Values(m.hosts))
	closed := m.closed
	m.closed = true
	m.mu.Unlock()
	if closed {
		return nil
	}
	var errs []error
	for _, host := range hosts {
		errs = append(errs, host.Remove())
	}
	errs = append(errs, m.top.remove(), m.home())
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove cgroups: %w", err)
	}
	return nil
}

func (m *Manager) forget(h *Host) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.hosts, h.groupName)
}

// checkName refuses what is not one plain path element.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00\n") {
		return errors.New("want a name that can be a directory")
	}
	return nil
}
