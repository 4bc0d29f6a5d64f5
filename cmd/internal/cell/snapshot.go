package cell

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// snapshot is the state of client, target and machine at one moment.
type snapshot struct {
	at       time.Time
	client   client
	machine  machine
	usage    targets.Usage
	nodes    []reading
	known    bool // which nodes there are
	problems []string
}

// before takes the snapshot at the beginning of a step. It reads the clocks last, so that the time that nodes take
// to answer is no part of the step.
func (s *Stepper) before(ctx context.Context) (snap snapshot) {
	s.readNodes(ctx, &snap)
	s.readClocks(&snap)
	return snap
}

// after takes the snapshot at the end of a step. It reads the clocks first, for the same reason.
func (s *Stepper) after(ctx context.Context) (snap snapshot) {
	s.readClocks(&snap)
	s.readNodes(ctx, &snap)
	return snap
}

// readClocks reads the clocks and what the kernel says of client, hosts and machine.
func (s *Stepper) readClocks(snap *snapshot) {
	snap.at, snap.client, snap.machine = time.Now(), readClient(), readMachine()
	if s.Target == nil {
		return
	}
	var err error
	if snap.usage, err = s.Target.Usage(); err != nil {
		snap.problems = append(snap.problems, "usage of the hosts is not known: "+err.Error())
	}
}

// readNodes reads the metrics of the nodes that count requests or report a declared figure.
func (s *Stepper) readNodes(ctx context.Context, snap *snapshot) {
	if s.Nodes == nil {
		return
	}
	nodes, err := s.Nodes(ctx)
	if err != nil {
		snap.problems = append(snap.problems, "what the nodes counted is not known: "+err.Error())
		return
	}
	var roles []sut.Role
	for _, f := range s.Figures {
		roles = append(roles, f.From...)
	}
	wanted := func(n targets.NodeStatus) bool { return n.Counts || slices.Contains(roles, n.Role) }
	snap.nodes, snap.known = readNodes(ctx, nodes, wanted), true
	for _, r := range snap.nodes {
		if r.err != nil {
			snap.problems = append(snap.problems, fmt.Sprintf("what %s counted is not known: %v", r.node.Node, r.err))
		}
	}
}

// client is what the load generator has used since it was started.
type client struct {
	cpu      time.Duration
	pauses   []time.Duration // of the garbage collector, the latest first
	pauseEnd []time.Time
	at       time.Time
}

func readClient() client {
	var usage syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &usage); err != nil {
		panic("cell: getrusage of oneself cannot fail: " + err.Error())
	}
	var gc debug.GCStats
	debug.ReadGCStats(&gc)
	return client{
		cpu:    time.Duration(usage.Utime.Nano() + usage.Stime.Nano()),
		pauses: gc.Pause, pauseEnd: gc.PauseEnd, at: time.Now(),
	}
}

// since is what was used from an earlier reading on; cores is what was free.
func (c client) since(before client, cores float64) results.ClientUsage {
	u := results.ClientUsage{CPUSeconds: (c.cpu - before.cpu).Seconds()}
	if elapsed := c.at.Sub(before.at).Seconds(); elapsed > 0 && cores > 0 {
		u.CPUShare = u.CPUSeconds / elapsed / cores
	}
	for i, end := range c.pauseEnd {
		if end.Before(before.at) {
			break
		}
		u.GCPauseSumNS += int64(c.pauses[i])
		u.GCPauseMaxNS = max(u.GCPauseMaxNS, int64(c.pauses[i]))
	}
	return u
}

// machine is how long all CPUs were busy, stolen time included, since boot.
type machine struct {
	busy, total float64 // seconds
}

// ticksPerSecond is the unit of /proc/stat, fixed at 100 on Linux.
const ticksPerSecond = 100

// readMachine reads /proc/stat; where there is none, nothing is known and
// nothing is held against the run.
func readMachine() machine {
	f, err := os.Open("/proc/stat")
	if err != nil {
		return machine{}
	}
	defer func() { _ = f.Close() }()
	line, err := bufio.NewReader(f).ReadString('\n')
	if err != nil {
		return machine{}
	}
	var m machine
	// user nice system idle iowait irq softirq steal; guest time is in user.
	for i, field := range strings.Fields(line)[1:] {
		ticks, err := strconv.ParseFloat(field, 64)
		if err != nil || i > 7 {
			break
		}
		m.total += ticks / ticksPerSecond
		if i != 3 && i != 4 {
			m.busy += ticks / ticksPerSecond
		}
	}
	return m
}

// outside is the share of the machine that something else than the run took.
func (m machine) outside(before machine, own float64) float64 {
	total := m.total - before.total
	if total <= 0 {
		return 0
	}
	return max(0, (m.busy-before.busy-own)/total)
}

// fileHeadroom is how many more files this process may open.
func fileHeadroom() int64 {
	var limit syscall.Rlimit
	open, err := os.ReadDir("/proc/self/fd")
	if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) {
		return 0
	}
	if err != nil || syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit) != nil {
		return -1
	}
	return max(0, int64(limit.Cur)-int64(len(open)))
}

// usageBetween is what hosts and nodes used between two readings.
func usageBetween(before, after targets.Usage, elapsed time.Duration) (
	hosts []results.HostUsage, nodes []results.NodeUsage,
) {
	for _, h := range after.Hosts {
		var b targets.HostUsage
		if i := slices.IndexFunc(before.Hosts, func(b targets.HostUsage) bool { return b.Host == h.Host }); i >= 0 {
			b = before.Hosts[i]
		}
		u := results.HostUsage{
			Host: h.Host, CPU: h.CPU, Isolated: h.Isolated,
			CPUSeconds: h.CPUSeconds - b.CPUSeconds, ThrottledSeconds: h.ThrottledSeconds - b.ThrottledSeconds,
		}
		if h.CPU > 0 && elapsed > 0 {
			u.CPUShare = u.CPUSeconds / elapsed.Seconds() / h.CPU
		}
		if periods := h.Periods - b.Periods; periods > 0 {
			u.ThrottledShare = float64(h.ThrottledPeriods-b.ThrottledPeriods) / float64(periods)
		}
		hosts = append(hosts, u)
	}
	for _, n := range after.Nodes {
		used := n.CPUSeconds
		if i := slices.IndexFunc(before.Nodes, func(b targets.NodeUsage) bool { return b.Node == n.Node }); i >= 0 {
			used -= before.Nodes[i].CPUSeconds
		}
		nodes = append(nodes, results.NodeUsage{
			Node: n.Node, Host: n.Host, Role: string(n.Role), CPUSeconds: max(0, used), RSSBytes: n.RSSBytes,
		})
	}
	return hosts, nodes
}
