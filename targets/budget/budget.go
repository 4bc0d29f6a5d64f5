// Package budget limits CPU and memory of hosts, and measures what hosts and
// nodes use. It uses cgroup v1 or cgroup v2. Where neither is permitted, it
// measures by the process tree and limits nothing.
//
// A Manager owns one group in each hierarchy. In it every host has a group with
// the limits, and in that group every node has a Leaf, so that the CPU time of a
// node is exact. A process starts inside its leaf, so all its CPU time is
// accounted there. All processes of a leaf can be signalled and killed together,
// also forked processes that have changed their process group.
//
// Call Detect, NewHost, Leaf, Leaf.Start, Host.Apply when the nodes of the host
// are ready, Usage at any time, and Close last. All methods may be called
// concurrently. Times are seconds of CPU, summed over CPUs. Memory is in bytes.
// The package never chooses a budget and never restarts a process. It never
// changes groups of others, except groups that a killed harness has left behind.
// It works on Linux only.
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

// Options configure a Manager. The zero value is usable.
type Options struct {
	// Prefix is the start of the names of our groups, "" = "stagebench". Detect
	// removes the groups of killed harnesses with the same prefix.
	Prefix string

	root  string     // directory that contains proc and sys, "" = "/"
	files filesystem // nil = the cgroup filesystem of the kernel
}

// Manager creates hosts.
type Manager struct {
	opts     Options
	describe string
	isolated bool
	top      group        // the manager's own group, parent of all hosts
	home     func() error // moves this process back to the group that it had before Detect

	mu     sync.Mutex
	hosts  map[string]*Host // guarded by mu: by the name of their group
	closed bool             // guarded by mu
}

func newManager(opts Options) *Manager {
	opts.Prefix, opts.root = cmp.Or(opts.Prefix, "stagebench"), cmp.Or(opts.root, "/")
	if opts.files == nil {
		opts.files = kernelFiles{}
	}
	return &Manager{opts: opts, hosts: map[string]*Host{}, home: func() error { return nil }}
}

// Detect checks what this machine supports, and removes the groups of killed
// harnesses. It never fails. Where no budget can be enforced, the manager only
// measures usage, and Describe returns the reason and what to do about it.
func Detect(opts Options) *Manager {
	Sweep(opts)
	m := newManager(opts)
	if err := m.detect(); err != nil {
		m.account(err.Error())
	}
	return m
}

// Unlimited returns a manager that measures usage by the process tree and enforces
// nothing. Describe returns the reason.
func Unlimited(reason string) *Manager {
	m := newManager(Options{})
	m.account(reason)
	return m
}

// account makes the manager measure usage by the process tree. Each manager marks
// its processes with its owner and a random name, so that it does not count those of others.
func (m *Manager) account(reason string) {
	self, _ := proc.Self(m.opts.root) // without an owner, Sweep never kills these processes
	m.top, m.describe = newTree(m.opts.root, self.String()+"-"+rand.Text()), "not isolated: "+reason
}

func (m *Manager) detect() error {
	found, err := findMounts(m.opts.root)
	if err != nil {
		return err
	}
	self, err := proc.Self(m.opts.root)
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

// makeTop creates the manager's own group below base, with the first unused name. It
// fails if that group does not accept a CPU limit: the kernel may be built without
// them.
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
		return errors.Join(fmt.Errorf("this kernel accepts no CPU limits: %w", err), top.remove())
	}
	m.top = top
	return nil
}

// Describe returns one line about how budgets are enforced: "cgroup v1",
// "cgroup v2", or "not isolated: " with the reason and what to do.
func (m *Manager) Describe() string { return m.describe }

// Isolated reports whether budgets are enforced.
func (m *Manager) Isolated() bool { return m.isolated }

// NewHost creates a host with a budget of cores and a memory limit in bytes; 0 = no
// limit. The memory limit is in force at once, the CPU budget after Host.Apply.
// Hosts may have the same name.
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

// Close kills the processes of all hosts, and removes the hosts and the manager's own
// group. The wait for the processes is bounded. Further calls do nothing.
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

// checkName returns an error if a name cannot be the name of a directory.
func checkName(name string) error {
	if name == "" || name == "." || name == ".." || strings.ContainsAny(name, "/\x00\n") {
		return errors.New("the name must be usable as the name of a directory")
	}
	return nil
}
