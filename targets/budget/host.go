package budget

import (
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"sync"
	"syscall"
	"time"
)

const (
	// killBound is how long killed processes may take to be gone. A process in
	// an uninterruptible wait, or with a lot of memory to free at a tenth of a
	// core, takes its time.
	killBound = 10 * time.Second
	// signalPasses bounds the search for processes that were forked while the
	// others were being signalled.
	signalPasses = 10
)

// Usage is what a host or a leaf has used since it was made. CPU time is exact
// to the nanosecond (v1) or microsecond (v2) in a cgroup; by the process tree
// it is exact to 10 ms and misses what a process used between the last look
// at it and its death.
type Usage struct {
	CPUSeconds       float64
	ThrottledSeconds float64 // hosts only: how long runnable threads were held back, summed over CPUs
	Periods          int64   // hosts only: quota periods in which something ran
	ThrottledPeriods int64   // hosts only: those in which the quota ran out
	RSSBytes         int64   // now: memory mapped by all processes; shared pages count once in a cgroup
	OOMKills         int64   // leaves in a cgroup only: processes killed for the memory limit
}

// group is a set of processes that is accounted for, and where the kernel
// permits limited, as one. Groups nest.
type group interface {
	child(name string) (group, error)
	// start starts a command as a member of the group.
	start(cmd *exec.Cmd) error
	// limitCPU enforces a quota; the zero Quota lifts it.
	limitCPU(q Quota) error
	limitMemory(bytes int64) error
	usage() (Usage, error)
	// pids lists the live members, those of nested groups included.
	pids() ([]int, error)
	// kill sends SIGKILL once to all members, which pids has just listed.
	kill(pids []int) error
	// remove removes the empty group and the groups in it. A group that does
	// not exist any more is no error.
	remove() error
}

// unit is a group with a name, for errors.
type unit struct {
	kind  string // "host", "node"
	name  string
	group group
}

// Host is a unit of capacity: a group with limits.
type Host struct {
	unit
	groupName string
	manager   *Manager
	quota     Quota // zero = no CPU limit

	mu      sync.Mutex
	leaves  map[string]*Leaf // guarded by mu
	removed bool             // guarded by mu
}

// Isolated reports whether the host is held to a CPU budget once Apply was
// called.
func (h *Host) Isolated() bool { return h.manager.isolated && h.quota != Quota{} }

// Leaf makes the group of one node on this host.
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
		return nil, fmt.Errorf("node %s is on host %s already", node, h.name)
	}
	group, err := h.group.child(node)
	if err != nil {
		return nil, fmt.Errorf("node %s: %w", node, err)
	}
	leaf := &Leaf{unit{"node", node, group}}
	h.leaves[node] = leaf
	return leaf, nil
}

// Apply puts the CPU budget in force. It is called when the host's nodes are
// ready: 20 ms of CPU to start would be 200 ms at a tenth of a core.
func (h *Host) Apply() error { return h.limit("apply", h.quota) }

// Lift takes the CPU budget off, for a restart or for the end.
func (h *Host) Lift() error { return h.limit("lift", Quota{}) }

func (h *Host) limit(what string, q Quota) error {
	if !h.Isolated() {
		return nil
	}
	if err := h.group.limitCPU(q); err != nil {
		return fmt.Errorf("%s the CPU budget of host %s: %w", what, h.name, err)
	}
	return nil
}

// Remove kills what is left on the host and removes its groups. It may be
// called again.
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
type Leaf struct{ unit }

// Start starts a command inside the leaf. The command must not have been
// started; waiting for it is the caller's business.
func (l *Leaf) Start(cmd *exec.Cmd) error {
	if err := l.group.start(cmd); err != nil {
		return fmt.Errorf("start inside the group of %s: %w", l.name, err)
	}
	return nil
}

// Usage is the account of the host, or of the node, where it goes on over
// restarts.
func (u *unit) Usage() (Usage, error) {
	usage, err := u.group.usage()
	if err != nil {
		return Usage{}, fmt.Errorf("read the usage of %s %s: %w", u.kind, u.name, err)
	}
	return usage, nil
}

// Signal sends a signal once to every process of the host or node, native
// servers included, also to those forked meanwhile.
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
	return nil
}

// KillAll kills every process of the host or node, whoever started it, until
// nothing is left or killBound is over.
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

var errBound = errors.New("the bound is over")

// within calls a function, at first often and then every 20 ms, until it says
// that it is done or fails. errBound when the bound is over before that.
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
