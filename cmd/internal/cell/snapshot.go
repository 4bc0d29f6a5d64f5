package cell

import (
	"context"
	"errors"
	"fmt"
	"os"
	"runtime/debug"
	"slices"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/cmd/internal/machine"
	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// snapshot is the state of client, target and machine at one moment.
type snapshot struct {
	at       time.Time
	client   client
	machine  machine.CPU
	usage    targets.Usage
	nodes    []scrape
	listed   bool // the list of nodes is known
	problems []string
}

// before takes the snapshot at the begin of a step. It reads the clocks last, so that the step does not include the
// time of the scrapes.
func (s *Stepper) before(ctx context.Context) (snap snapshot) {
	s.scrapeNodes(ctx, &snap)
	s.readClocks(&snap)
	return snap
}

// after takes the snapshot at the end of a step. It reads the clocks first, for the same reason.
func (s *Stepper) after(ctx context.Context) (snap snapshot) {
	s.readClocks(&snap)
	s.scrapeNodes(ctx, &snap)
	return snap
}

// readClocks reads the time and the CPU use of client, hosts and machine.
func (s *Stepper) readClocks(snap *snapshot) {
	snap.at, snap.client, snap.machine = time.Now(), readClient(), machine.ReadCPU()
	if s.Target == nil {
		return
	}
	var err error
	if snap.usage, err = s.Target.Usage(); err != nil {
		snap.problems = append(snap.problems, "CPU use of the hosts is unknown: "+err.Error())
	}
}

// scrapeNodes scrapes the nodes that count requests or export a declared figure.
func (s *Stepper) scrapeNodes(ctx context.Context, snap *snapshot) {
	if s.Nodes == nil {
		return
	}
	nodes, err := s.Nodes(ctx)
	if err != nil {
		snap.problems = append(snap.problems, "metrics of the nodes are unknown: "+err.Error())
		return
	}
	var roles []sut.Role
	for _, f := range s.Figures {
		roles = append(roles, f.From...)
	}
	wanted := func(n targets.NodeStatus) bool { return n.CountsClientRequests || slices.Contains(roles, n.Role) }
	snap.nodes, snap.listed = scrapeNodes(ctx, nodes, wanted), true
	for _, n := range snap.nodes {
		if n.err != nil {
			snap.problems = append(snap.problems, fmt.Sprintf("metrics of %s are unknown: %v", n.node.Node, n.err))
		}
	}
}

// client is the resource use of this process since its start.
type client struct {
	at       time.Time
	cpu      time.Duration
	pauses   []time.Duration // of the garbage collector, most recent first
	pauseEnd []time.Time     // end of each pause
}

func readClient() client {
	var gc debug.GCStats
	debug.ReadGCStats(&gc)
	return client{cpu: machine.OwnCPU(), pauses: gc.Pause, pauseEnd: gc.PauseEnd, at: time.Now()}
}

// since returns the use since an earlier state. Cores is the number of cores that the client could use.
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

// fileHeadroom returns how many more files this process may open; -1 = unknown.
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

// usageBetween returns the resource use of hosts and nodes between two states, which are elapsed apart.
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
		var b targets.NodeUsage
		if i := slices.IndexFunc(before.Nodes, func(b targets.NodeUsage) bool { return b.Node == n.Node }); i >= 0 {
			b = before.Nodes[i]
		}
		u := results.NodeUsage{
			Node: n.Node, Host: n.Host, Role: string(n.Role), RSSBytes: n.RSSBytes,
			CPUSeconds: max(0, n.CPUSeconds-b.CPUSeconds), WaitSeconds: max(0, n.WaitSeconds-b.WaitSeconds),
		}
		if i := slices.IndexFunc(hosts, func(h results.HostUsage) bool { return h.Host == n.Host }); i >= 0 {
			u.ThrottledSeconds = hosts[i].ThrottledSeconds
		}
		nodes = append(nodes, u)
	}
	return hosts, nodes
}
