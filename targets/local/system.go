package local

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
)

// Topology returns the current topology.
func (s *System) Topology() sut.Topology {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.topology
}

// Endpoints lists the base URLs for clients. A client may use any of them.
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

// LogDir returns the directory of the nodes' logs: NODE.log.
func (s *System) LogDir() string { return s.logDir }

// BringUp returns how long Up took, without building the template.
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
			ReadyNS: n.readyIn.Nanoseconds(), ReplicationRole: s.replicationRole(n), Secret: s.secret,
			CountsClientRequests: slices.Contains(s.topology.Counters, n.Name),
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

// Usage returns what hosts and nodes have used since they started.
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
			Node: n.Name, Host: n.Host, Role: n.Role, CPUSeconds: u.CPUSeconds, WaitSeconds: u.WaitSeconds,
			RSSBytes: u.RSSBytes,
		})
	}
	return usage, nil
}

// left reports whether a host was removed from the system.
func (s *System) left(h *host) bool {
	hosts, _ := s.members()
	return !slices.Contains(hosts, h)
}

// Events returns all events so far, oldest first.
func (s *System) Events() []targets.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]targets.Event(nil), s.events...)
}

// members is all processes of a host or of a node.
type members interface {
	KillAll() error
	Signal(sig syscall.Signal) error
}

// find resolves a name. If a host and a node have the same name, it returns the host,
// because a host is the unit of failure. The replication role primary means the host of
// the current primary. The replication role replica means the host of the first replica
// that serves.
func (s *System) find(name string) ([]*node, members, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		role := s.replicationRole(n)
		if role != "" && string(role) == name && (n.serves() || n.Name == s.roles.Primary) {
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
	return nil, nil, fmt.Errorf("there is no host or node %q\nwant one of %s",
		name, strings.Join(slices.Compact(known), ", "))
}

// Kill kills all processes of a host or a node, native servers included, and returns when
// they are dead. The supervisors restart the nodes.
func (s *System) Kill(name string) error {
	nodes, all, err := s.find(name)
	if err != nil {
		return err
	}
	// Mark the nodes as dead before they die. Otherwise a restarting node of the same host
	// could start because a node that it uses still seems to serve.
	alive := func(n *node) bool { return n.serves() || n.state == targets.Starting }
	if err := s.mark(nodes, name, "kill", alive, func(n *node, alive bool) {
		n.frozen = false // a killed host is not paused
		if !alive {
			return
		}
		n.expected = true
		s.set(n, targets.Dead)
		s.note(n, "killed on request")
	}); err != nil {
		return err
	}
	s.hold(nodes, 1)
	defer s.hold(nodes, -1)
	return all.KillAll()
}

// hold changes the number of kills in progress. A node does not start while it is above 0:
// the kill would hit the new process, too.
func (s *System) hold(nodes []*node, by int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range nodes {
		n.held += by
		s.wake()
	}
}

// Pause sends SIGSTOP to all processes of a host or a node: connections stay open and
// nothing answers.
func (s *System) Pause(name string) error {
	serving := func(n *node) bool { return n.state == targets.Serving }
	return s.freeze(name, "pause", syscall.SIGSTOP, serving, func(n *node, serves bool) {
		n.frozen = true // also a dead node: it must not start on a paused host
		if serves {
			s.set(n, targets.Paused)
			s.note(n, "paused on request")
		}
	})
}

// Resume continues a host or a node after Pause. A database that was fenced while it was
// paused restarts.
func (s *System) Resume(name string) error {
	isFrozen := func(n *node) bool { return n.frozen }
	return s.freeze(name, "resume", syscall.SIGCONT, isFrozen, func(n *node, frozen bool) {
		if !frozen {
			return
		}
		n.frozen = false
		if n.state == targets.Paused {
			s.set(n, targets.Serving)
		} else {
			s.wake()
		}
		s.note(n, "resumed on request")
	})
}

// freeze marks the nodes of a host or a node as mark does and sends all processes a signal.
func (s *System) freeze(
	name, verb string, sig syscall.Signal, applies func(*node) bool, change func(n *node, applies bool),
) error {
	nodes, all, err := s.find(name)
	if err != nil {
		return err
	}
	if err := s.mark(nodes, name, verb, applies, change); err != nil {
		return err
	}
	return all.Signal(sig)
}

// mark calls change for every node, with the result of applies for that node. It returns
// an error and changes nothing if applies is false for all nodes.
func (s *System) mark(
	nodes []*node, name, verb string, applies func(*node) bool, change func(n *node, applies bool),
) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.life.Err() != nil {
		return fmt.Errorf("%s %s: the system is going down", verb, name)
	}
	if !slices.ContainsFunc(nodes, applies) {
		return fmt.Errorf("%s %s: it is %s", verb, name, nodes[0].state)
	}
	for _, n := range nodes {
		change(n, applies(n))
	}
	return nil
}

// Down stops the system. A node drains after all nodes that use it have stopped. It is
// killed if it takes too long or ctx ends. Then Down removes the cgroups and the private
// directory. Down may be called again; every call returns when all is removed.
func (s *System) Down(ctx context.Context) error {
	s.down.Do(func() { s.downErr = s.end(ctx) })
	return s.downErr
}

func (s *System) end(ctx context.Context) error {
	s.endLife()
	s.watching.Wait()
	s.admin.CloseIdleConnections()
	// A Scale in progress fails and rolls back, because the life of the system has ended.
	s.scaling.Lock()
	defer s.scaling.Unlock()
	hosts, nodes := s.members()
	for _, n := range nodes {
		n.watched.Wait()
	}
	var errs []error
	for _, h := range hosts {
		// A host drains faster without its CPU budget. A paused host cannot drain.
		errs = append(errs, h.budget.Lift(), h.budget.Signal(syscall.SIGCONT))
	}
	s.stopAll(ctx, nodes)
	for _, h := range hosts {
		errs = append(errs, h.budget.Remove())
	}
	s.logs.Wait()
	errs = append(errs, s.budgets())
	if s.dir != "" {
		errs = append(errs, s.opts.discard(s.dir))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("bring down %s: %w", s.opts.Topology.Stage, err)
	}
	s.say("%s is down", s.opts.Topology.Stage)
	return nil
}

// stopAll stops each node after the nodes that use it, and independent nodes concurrently.
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
