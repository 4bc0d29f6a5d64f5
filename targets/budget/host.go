package budget

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/targets/proc"
)

const (
	// killBound is how long killed processes may take to end. A process in an
	// uninterruptible wait takes long. So does a process that frees much memory with
	// a budget of a tenth of a core.
	killBound = 10 * time.Second
	// signalPasses bounds how often Signal searches for processes that were forked
	// during the previous pass.
	signalPasses = 10
)

// Usage is the usage of a host or leaf since it was created. In a cgroup, CPU time is
// exact to the nanosecond (v1) or microsecond (v2). By the process tree it is exact to
// 10 ms. There it also misses the CPU time of a process between the last measurement
// and its death.
type Usage struct {
	CPUSeconds       float64
	ThrottledSeconds float64 // hosts only: time that runnable threads were throttled, summed over CPUs
	Periods          int64   // hosts only: quota periods in which a thread ran
	ThrottledPeriods int64   // hosts only: quota periods in which the quota was used up
	WaitSeconds      float64 // leaves only: see waitOf
	RSSBytes         int64   // current memory of all processes; a cgroup counts shared pages once
	OOMKills         int64   // leaves in a cgroup only: processes killed because of the memory limit
}

// group is a set of processes that is measured, signalled and killed together. Where
// the kernel permits it, a group also has limits. Groups can be nested.
type group interface {
	child(name string) (group, error)
	// start starts a command as a member of the group.
	start(cmd *exec.Cmd) error
	// limitCPU enforces a quota. The zero Quota removes the limit.
	limitCPU(q Quota) error
	limitMemory(bytes int64) error
	usage() (Usage, error)
	// pids lists the living members, also those of nested groups.
	pids() ([]int, error)
	// kill sends SIGKILL once to all members. pids is the latest list of them.
	kill(pids []int) error
	// remove removes the empty group and its nested groups. A group that does not
	// exist is no error.
	remove() error
}

// unit is a host or node: a group, and its name in errors.
type unit struct {
	kind  string // "host", "node"
	name  string
	group group
}

// Host is a unit of capacity: a group with limits.
//
// Locks are taken in the order Host.mu, Manager.mu.
type Host struct {
	unit
	groupName string
	manager   *Manager
	quota     Quota // zero = no CPU limit

	mu      sync.Mutex
	leaves  map[string]*Leaf // guarded by mu
	removed bool             // guarded by mu
}

// Isolated reports whether Apply enforces a CPU budget.
func (h *Host) Isolated() bool { return h.manager.isolated && h.quota != Quota{} }

// Leaf creates the group of one node on this host.
func (h *Host) Leaf(node string) (*Leaf, error) {
	if err := checkName(node); err != nil {
		return nil, fmt.Errorf("node %q: %w", node, err)
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.removed {
		return nil, fmt.Errorf("node %s: host %s is removed", node, h.name)
	}
	if h.leaves[node] != nil {
		return nil, fmt.Errorf("node %s already exists on host %s", node, h.name)
	}
	group, err := h.group.child(node)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	leaf := &Leaf{unit{"node", node, group}, h.manager.opts.root}
	h.leaves[node] = leaf
	return leaf, nil
}

// Apply puts the CPU budget in force. Call it when the nodes of the host are ready:
// with a budget of a tenth of a core, a start that takes 20 ms of CPU would last
// 200 ms.
func (h *Host) Apply() error { return h.limit("apply", h.quota) }

// Lift removes the CPU limit, for the restart of a node or before the end.
func (h *Host) Lift() error { return h.limit("lift", Quota{}) }

func (h *Host) limit(action string, q Quota) error {
	if !h.Isolated() {
		return nil
	}
	if err := h.group.limitCPU(q); err != nil {
		return fmt.Errorf("%s the CPU budget of host %s: %w", action, h.name, err)
	}
	return nil
}

// Remove kills the remaining processes of the host and removes its groups. After a
// success further calls do nothing.
func (h *Host) Remove() error {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.removed {
		return nil
	}
	if err := errors.Join(h.KillAll(), h.group.remove()); err != nil {
		return fmt.Errorf("remove host %s: %w", h.name, err)
	}
	h.removed = true
	h.manager.forget(h)
	return nil
}

// Leaf is the group of one node.
type Leaf struct {
	unit
	root string // directory that contains proc
}

// Usage returns the usage of the node, with the time that its threads waited for a CPU.
func (l *Leaf) Usage() (Usage, error) {
	usage, err := l.unit.Usage()
	if err == nil {
		usage.WaitSeconds = waitOf(l.root, l.group)
	}
	return usage, err
}

// Start starts a command inside the leaf. The caller must call cmd.Wait. Start
// modifies cmd, which must not have been started.
func (l *Leaf) Start(cmd *exec.Cmd) error {
	if err := l.group.start(cmd); err != nil {
		return fmt.Errorf("start a process in the group of node %s: %w", l.name, err)
	}
	return nil
}

// Usage returns the usage of the host or node. The usage of a node includes its
// earlier processes.
func (u *unit) Usage() (Usage, error) {
	usage, err := u.group.usage()
	if err != nil {
		return Usage{}, fmt.Errorf("read the usage of %s %s: %w", u.kind, u.name, err)
	}
	return usage, nil
}

// Signal sends a signal once to every process of the host or node. These include
// native servers, and processes that are forked during the call. After SIGSTOP it waits
// until none of them runs: the kernel gives a signal to one thread of a process, and until
// that thread gets a CPU the others go on.
func (u *unit) Signal(sig syscall.Signal) error {
	sent := map[int]bool{}
	for range signalPasses {
		pids, err := u.group.pids()
		if err != nil {
			return fmt.Errorf("signal %s: %w", u.name, err)
		}
		pids = slices.DeleteFunc(pids, func(pid int) bool { return sent[pid] })
		if len(pids) == 0 {
			break
		}
		for _, pid := range pids {
			sent[pid] = true
			if err := syscall.Kill(pid, sig); err != nil && !errors.Is(err, syscall.ESRCH) {
				return fmt.Errorf("signal %s, process %d: %w", u.name, pid, err)
			}
		}
	}
	if sig != syscall.SIGSTOP {
		return nil
	}
	err := within(killBound, func() (bool, error) {
		for pid := range sent {
			if runs(pid) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		return fmt.Errorf("stop %s: a process runs %v after SIGSTOP", u.name, killBound)
	}
	return nil
}

// runs reports whether a thread of a process can run code of its program. One that is stopped, that has ended, or that
// waits in the kernel for a device cannot: the last one stops before it returns from there. The states are those of
// proc(5).
func runs(pid int) bool {
	threads, _ := os.ReadDir(fmt.Sprintf("/proc/%d/task", pid)) // a process that has ended has none
	return slices.ContainsFunc(threads, func(thread os.DirEntry) bool {
		id, _ := strconv.Atoi(thread.Name())
		stat, err := proc.ReadStat("/", id)
		return err == nil && !strings.ContainsRune("TtZXD", rune(stat.State))
	})
}

// KillAll kills every process of the host or node and waits until none is left. It
// returns an error if processes are left after killBound.
func (u *unit) KillAll() error {
	var left []int
	gone := within(killBound, func() (bool, error) {
		pids, err := u.group.pids()
		if err != nil || len(pids) == 0 {
			return true, err
		}
		left = pids
		return false, u.group.kill(pids)
	})
	switch {
	case errors.Is(gone, errBound):
		return fmt.Errorf("kill %s: processes %v survived SIGKILL for %v", u.name, left, killBound)
	case gone != nil:
		return fmt.Errorf("kill %s: %w", u.name, gone)
	}
	return nil
}

var errBound = errors.New("the time limit is exceeded")

// within calls try until it is done or returns an error. The pause between two calls
// grows to 20 ms. within returns errBound if that takes longer than bound.
func within(bound time.Duration, try func() (done bool, err error)) error {
	deadline := time.Now().Add(bound)
	for wait := 250 * time.Microsecond; ; wait = min(2*wait, 20*time.Millisecond) {
		if done, err := try(); done || err != nil {
			return err
		}
		if time.Now().After(deadline) {
			return errBound
		}
		time.Sleep(wait)
	}
}
