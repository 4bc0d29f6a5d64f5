package local

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
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
	return s.urls(func(t sut.Topology) []string { return t.Frontends })
}

// Fallbacks lists the base URLs for clients that cannot connect to any endpoint; nil = none.
func (s *System) Fallbacks() []string {
	return s.urls(func(t sut.Topology) []string { return t.Fallbacks })
}

// urls returns the base URLs of some nodes of the topology.
func (s *System) urls(names func(sut.Topology) []string) []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	var urls []string
	for _, p := range s.peers(names(s.topology)) {
		urls = append(urls, "http://"+p.Address)
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
			ReadyNS: n.readyIn.Nanoseconds(), ReplicationRole: s.replicationRole(n), Shard: n.Shard, Secret: s.secret,
			CountsClientRequests: slices.Contains(s.topology.Counters, n.Name),
		}
		if last, known := s.setOf(n).last(n.Name); known {
			all[i].Discarded = last.Discarded
			if all[i].ReplicationRole == targets.Replica {
				all[i].LagNS = last.LagNS
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
// because a host is the unit of failure. A replication role means the host of the first
// database with this role that serves: primary, or primary-2 for that of shard 2. If no
// primary serves, it means the first one that is dead.
func (s *System) find(name string) ([]*node, members, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if n := s.withRole(name); n != nil {
		name = n.Host
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

// withRole returns the database that a replication role means, nil if there is none. The
// caller holds mu.
func (s *System) withRole(role string) (found *node) {
	for _, n := range s.nodes {
		switch {
		case !s.replicationRole(n).Named(role, n.Shard):
		case n.serves():
			return n
		case found == nil && s.isPrimary(n):
			found = n
		}
	}
	return found
}

// Kill kills all processes of a host or a node, native servers included, and returns when
// they are dead. The supervisors restart the nodes.
func (s *System) Kill(name string) error { return s.KillFor(name, 0) }

// KillFor is Kill, and the nodes restart after this time at the earliest.
func (s *System) KillFor(name string, down time.Duration) error {
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
	err = all.KillAll()
	if down > 0 {
		time.AfterFunc(down, func() { s.hold(nodes, -1) })
	} else {
		s.hold(nodes, -1)
	}
	return err
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

// Purge removes entries of all edges. Afterwards no edge answers with a response that it requested before. If an edge
// cannot purge, the error says why, and the other edges have purged.
func (s *System) Purge(ctx context.Context, p sut.Purge) ([]targets.Purged, error) {
	_, nodes := s.members()
	edges := slices.DeleteFunc(slices.Clone(nodes), func(n *node) bool { return n.Role != sut.Edge })
	if len(edges) == 0 {
		return nil, fmt.Errorf("stage %s has no edges\nbring up a stage that has: stagebench up --stage %s",
			s.Topology().Stage, sut.CDN)
	}
	purged, errs := make([]targets.Purged, len(edges)), make([]error, len(edges))
	var all sync.WaitGroup
	for i, n := range edges {
		all.Go(func() {
			begin := time.Now()
			err := s.purge(ctx, n, p)
			purged[i] = targets.Purged{
				Node: n.Name, Down: errors.Is(err, errDead), TookNS: time.Since(begin).Nanoseconds(),
			}
			if err != nil && !purged[i].Down {
				errs[i] = err
			}
		})
	}
	all.Wait()
	return purged, errors.Join(errs...)
}

// purge purges one edge. A starting edge is purged when it serves. The error is errDead if it is dead or dies.
func (s *System) purge(ctx context.Context, n *node, p sut.Purge) error {
	process, err := s.serving(ctx, n, "purge", nil)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, answerBound)
	defer cancel()
	err = s.call(ctx, n.Name, request{method: http.MethodPost, path: sut.PurgePath, document: p})
	var refused *refusal
	if err == nil || errors.As(err, &refused) {
		return err
	}
	return deathOf(ctx, process, err)
}

// Freeze stops all processes of the system with SIGSTOP and suspends its supervision, so that
// other systems have the machine for a while. Thaw continues it: clients keep their
// connections, no node is replaced and no host is added or removed. Both belong to one
// goroutine. Freeze waits for a change of the number of hosts. It returns an error and stops
// nothing if a node does not serve.
func (s *System) Freeze(ctx context.Context) (thaw func() error, err error) {
	s.scaling.Lock() // a later change finds the nodes frozen
	defer s.scaling.Unlock()
	hosts, nodes := s.members()
	if i := slices.IndexFunc(nodes, func(n *node) bool { return s.stateOf(n) != targets.Serving }); i >= 0 {
		return nil, fmt.Errorf("freeze %s: %s is %s", s.opts.Topology.Stage, nodes[i].Name, s.stateOf(nodes[i]))
	}
	resume, err := s.suspend(ctx)
	if err != nil {
		return nil, fmt.Errorf("freeze %s: %w", s.opts.Topology.Stage, err)
	}
	// A topology lists a host before those that it uses. A host that checks others stops first and
	// continues last, so it never finds them silent.
	thaw = func() error {
		var errs []error
		for _, h := range slices.Backward(hosts) {
			errs = append(errs, h.budget.Signal(syscall.SIGCONT))
		}
		s.setFrozen(nodes, false)
		resume()
		return errors.Join(errs...)
	}
	s.setFrozen(nodes, true)
	for _, h := range hosts {
		if err := h.budget.Signal(syscall.SIGSTOP); err != nil {
			return nil, errors.Join(fmt.Errorf("freeze %s: %w", s.opts.Topology.Stage, err), thaw())
		}
	}
	return thaw, nil
}

func (s *System) stateOf(n *node) targets.State {
	s.mu.Lock()
	defer s.mu.Unlock()
	return n.state
}

// setFrozen marks nodes. A node that dies while it is frozen restarts after the thaw.
func (s *System) setFrozen(nodes []*node, frozen bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range nodes {
		n.frozen = frozen
	}
	s.wake()
}
