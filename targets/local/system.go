package local

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// Topology is what the system is at this moment.
func (s *System) Topology() sut.Topology {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topology
}

// Endpoints lists where clients send their requests: to any of these.
func (s *System) Endpoints() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var urls []string
	for _, name := range s.topology.Frontends {
		for _, n := range s.nodes {
			if n.Name == name {
				urls = append(urls, "http://"+n.ready.Address)
			}
		}
	}
	return urls
}

// LogDir is where the nodes' logs are: NODE.log.
func (s *System) LogDir() string { return s.logDir }

// BringUp is how long it took from the finished template to the readiness of
// all nodes: copies, start and budgets.
func (s *System) BringUp() time.Duration { return s.bringUp }

// Status lists the nodes in start order.
func (s *System) Status() []targets.NodeStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	all := make([]targets.NodeStatus, len(s.nodes))
	for i, n := range s.nodes {
		all[i] = targets.NodeStatus{
			Node: n.Name, Host: n.Host, Role: n.Role, Engine: n.Engine, Version: n.ready.Version,
			State: n.state, Address: n.ready.Address, Admin: n.ready.Admin, Restarts: n.restarts, Cause: n.cause,
			ReadyNS: n.readyIn.Nanoseconds(), ReplicationRole: s.replicationRole(n), Counts: slices.Contains(s.topology.Counters, n.Name),
		}
		if n.Replicated && s.failover != nil {
			if last, known := s.failover.Last(n.Name); known {
				all[i].Conflicts = last.Conflicts
				if all[i].ReplicationRole == targets.Replica {
					all[i].LagNS = last.LagNS
				}
			}
		}
		if n.process != nil && n.serves() {
			all[i].PID = n.process.PID()
		}
	}
	return all
}

// Usage is what hosts and nodes have used since they were started.
func (s *System) Usage() (targets.Usage, error) {
	var usage targets.Usage
	hosts, nodes := s.members()
	for _, h := range hosts {
		u, err := h.budget.Usage()
		if err != nil && s.left(h) {
			continue
		}
		if err != nil {
			return targets.Usage{}, err
		}
		usage.Hosts = append(usage.Hosts, targets.HostUsage{
			Host: h.Name, CPU: h.CPU, Isolated: h.budget.Isolated(), CPUSeconds: u.CPUSeconds,
			ThrottledSeconds: u.ThrottledSeconds, Periods: u.Periods, ThrottledPeriods: u.ThrottledPeriods,
		})
	}
	for _, n := range nodes {
		u, err := n.leaf.Usage()
		if err != nil && s.left(n.host) {
			continue
		}
		if err != nil {
			return targets.Usage{}, err
		}
		usage.Nodes = append(usage.Nodes, targets.NodeUsage{
			Node: n.Name, Host: n.Host, Role: n.Role, CPUSeconds: u.CPUSeconds, RSSBytes: u.RSSBytes,
		})
	}
	return usage, nil
}

// left reports whether a host is not part of the system any more.
func (s *System) left(h *host) bool {
	hosts, _ := s.members()
	return !slices.Contains(hosts, h)
}

// Events lists what has happened so far, oldest first.
func (s *System) Events() []targets.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]targets.Event(nil), s.events...)
}

// members is what a fault acts on: all processes of a host or of a node.
type members interface {
	KillAll() error
	Signal(sig syscall.Signal) error
}

// find resolves a name. A host comes before a node of the same name, because
// a host is the unit of failure: everything on it fails with it. The standings
// of databases are names, too: that of the primary's host at this moment, and
// that of the first replica that serves.
func (s *System) find(name string) ([]*node, members, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if standing := s.replicationRole(n); standing != "" && string(standing) == name && (n.serves() || n.Name == s.roles.Primary) {
			name = n.Host
			break
		}
	}
	for _, h := range s.hosts {
		if h.Name == name {
			return h.nodes, h.budget, nil
		}
	}
	var known []string
	for _, h := range s.hosts {
		known = append(known, h.Name)
	}
	for _, n := range s.nodes {
		if n.Name == name {
			return []*node{n}, n.leaf, nil
		}
		known = append(known, n.Name)
	}
	slices.Sort(known)
	return nil, nil, fmt.Errorf("there is no host or node %q\nwant one of %s", name, strings.Join(slices.Compact(known), ", "))
}

// Kill kills everything on a host, or everything of a node, native servers
// included, and returns when it is dead. Supervision brings it back.
func (s *System) Kill(name string) error {
	nodes, all, err := s.find(name)
	if err != nil {
		return err
	}
	// The nodes are marked before they die, so that no supervisor takes one
	// that is about to die for one that serves.
	if err := s.mark(nodes, name, "kill", func(n *node) bool { return n.serves() || n.state == targets.Starting }, func(n *node, lives bool) {
		n.frozen = false // a machine that is switched off is not paused any more
		if !lives {
			return
		}
		n.asked = true
		s.set(n, targets.Dead)
		s.note(n, "killed on request")
	}); err != nil {
		return err
	}
	s.hold(nodes, 1)
	defer s.hold(nodes, -1)
	return all.KillAll()
}

// hold keeps nodes from being started again while everything of them is being
// killed, and lets them go.
func (s *System) hold(nodes []*node, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range nodes {
		n.held += by
		s.set(n, n.state) // wakes who waits for it
	}
}

// Pause stops everything on a host, or everything of a node, as SIGSTOP does:
// connections stay open and nothing answers.
func (s *System) Pause(name string) error {
	return s.freeze(name, "pause", syscall.SIGSTOP, func(n *node) bool { return n.state == targets.Serving }, func(n *node, serves bool) {
		n.frozen = true // what is dead cannot start there either
		if serves {
			s.set(n, targets.Paused)
			s.note(n, "paused on request")
		}
	})
}

// Resume continues what Pause stopped. A database that was taken for dead and
// ended meanwhile starts again.
func (s *System) Resume(name string) error {
	return s.freeze(name, "resume", syscall.SIGCONT, func(n *node) bool { return n.frozen }, func(n *node, frozen bool) {
		if !frozen {
			return
		}
		n.frozen = false
		if n.state == targets.Paused {
			s.set(n, targets.Serving)
		} else {
			s.set(n, n.state) // wakes who waits for it
		}
		s.note(n, "resumed on request")
	})
}

func (s *System) freeze(name, verb string, sig syscall.Signal, sensible func(*node) bool, change func(n *node, fits bool)) error {
	nodes, all, err := s.find(name)
	if err != nil {
		return err
	}
	if err := s.mark(nodes, name, verb, sensible, change); err != nil {
		return err
	}
	return all.Signal(sig)
}

// mark applies change to nodes, and tells it of each whether it makes sense for it; it
// fails when that is so for none.
func (s *System) mark(nodes []*node, name, verb string, sensible func(*node) bool, change func(n *node, fits bool)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() != nil {
		return fmt.Errorf("%s %s: the system is going down", verb, name)
	}
	if !slices.ContainsFunc(nodes, sensible) {
		return fmt.Errorf("%s %s: it is %s", verb, name, nodes[0].state)
	}
	for _, n := range nodes {
		change(n, sensible(n))
	}
	return nil
}

// Down ends the system: each node drains after all that use it are gone, and is
// killed when it takes too long or ctx ends. Then the groups and the private
// directory are removed. It may be called again; every call returns when all
// is gone.
func (s *System) Down(ctx context.Context) error {
	s.down.Do(func() { s.downErr = s.end(ctx) })
	return s.downErr
}

func (s *System) end(ctx context.Context) error {
	s.endLife()
	s.watching.Wait()
	s.admin.CloseIdleConnections()
	// A change of the topology that is under way gives up, and takes back what it has begun.
	s.scaling.Lock()
	defer s.scaling.Unlock()
	hosts, nodes := s.members()
	for _, n := range nodes {
		n.watched.Wait()
	}
	var errs []error
	for _, h := range hosts {
		// A host drains faster without its budget, and a paused one not at all.
		errs = append(errs, h.budget.Lift(), h.budget.Signal(syscall.SIGCONT))
	}
	s.stopAll(ctx, nodes)
	for _, h := range hosts {
		errs = append(errs, h.budget.Remove())
	}
	s.logs.Wait()
	errs = append(errs, s.budgets())
	if s.dir != "" {
		errs = append(errs, os.RemoveAll(s.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("bring down %s: %w", s.opts.Topology.Stage, err)
	}
	s.say("%s is down", s.opts.Topology.Stage)
	return nil
}

// stopAll stops nodes in the reverse of the order in which they came up,
// independent ones at the same time.
func (s *System) stopAll(ctx context.Context, nodes []*node) {
	stopped := map[*node]chan struct{}{}
	for _, n := range nodes {
		stopped[n] = make(chan struct{})
	}
	for _, n := range nodes {
		var users []*node
		for _, other := range nodes {
			for _, used := range s.usedBy(other) {
				if used == n {
					users = append(users, other)
				}
			}
		}
		go func() {
			defer close(stopped[n])
			for _, user := range users {
				<-stopped[user]
			}
			s.stop(ctx, n)
		}()
	}
	for _, done := range stopped {
		<-done
	}
}

func (s *System) stop(ctx context.Context, n *node) {
	s.mu.Lock()
	process := n.process
	s.mu.Unlock()
	text := "stopped"
	if process != nil {
		if exit := process.Stop(ctx); !exit.Clean() {
			text = "stopped: " + exit.Cause
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if n.serves() {
		s.note(n, "%s", text)
	}
	s.set(n, targets.Stopped)
}
