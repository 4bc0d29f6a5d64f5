package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strconv"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
)

const (
	// drainBound is how long the balancers may take to finish what a host that
	// leaves still has. Then the host itself finishes what it can, and is stopped.
	drainBound = 10 * time.Second
	// tellBound is how long a node may take to answer besides.
	tellBound = 5 * time.Second
	// deathBound is how long after its connections broke a process may be known to
	// be dead: its log is read to the end first.
	deathBound = 2 * time.Second
)

// Scale changes the number of hosts of a tier while the system runs: more are
// started and take part, or the last ones are drained and stopped. No request
// has to fail for it. It returns when it is done; when it fails, or ctx ends,
// the system is what it was before.
func (s *System) Scale(ctx context.Context, role sut.Role, hosts int) error {
	now := s.Topology()
	if role != sut.Web {
		return fmt.Errorf("scale %s: only the hosts of tier %s can change their number while the system runs", role, sut.Web)
	}
	if !slices.ContainsFunc(now.Nodes, func(n sut.Node) bool { return n.Role == sut.Balance }) {
		return fmt.Errorf("scale %s: stage %s has no balancer to spread requests over several hosts\nbring up a stage that has one: stagebench up --stage %s", role, now.Stage, sut.LB)
	}
	knobs := maps.Clone(now.Knobs)
	knobs["web.hosts"] = strconv.Itoa(hosts)
	next, err := ladder.Build(now.Stage, knobs, now.UnitCPU)
	if err != nil {
		return fmt.Errorf("scale %s to %d: %w", role, hosts, err)
	}
	if s.opts.Admit != nil {
		if err := s.opts.Admit(next); err != nil {
			return fmt.Errorf("scale %s to %d: %w", role, hosts, err)
		}
	}
	if err := s.move(ctx, next); err != nil {
		return fmt.Errorf("scale %s to %d: %w", role, hosts, err)
	}
	return nil
}

// move makes the system another topology, of which it differs by hosts that come
// and go.
func (s *System) move(ctx context.Context, next sut.Topology) error {
	if !s.moving.TryLock() {
		return errors.New("the system is being changed already: wait until that is done")
	}
	defer s.moving.Unlock()
	if s.life.Err() != nil {
		return errors.New("the system is going down")
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(s.life, cancel)()
	before := s.Topology()
	told, err := difference(before, next)
	if err != nil {
		return err
	}
	if err := s.nonePaused(told); err != nil {
		return err
	}
	back := context.WithoutCancel(ctx) // what was begun is taken back whole; each step is bounded
	added, err := s.place(next)
	if err == nil {
		err = s.startAll(ctx, added, "")
	}
	if err != nil {
		return errors.Join(err, s.dismiss(back, before))
	}
	s.adopt(next)
	if err := s.tell(ctx, told); err != nil {
		s.adopt(before) // those who were told already are told the contrary
		// On the way down there is nobody left to tell.
		if untold := s.tell(s.life, told); untold != nil {
			err = errors.Join(err, fmt.Errorf("and to take it back: %w", untold))
		}
		return errors.Join(err, s.dismiss(back, before))
	}
	for _, n := range added {
		s.noted(n, "takes part")
	}
	// From here on nobody uses the hosts that leave, so nothing can bring them back.
	return s.dismiss(back, next)
}

// difference says which nodes have to be told of the next topology, and refuses
// what cannot be done to a running system.
func difference(now, next sut.Topology) (told []string, err error) {
	if now.Stage != next.Stage {
		return nil, fmt.Errorf("from stage %s to %s: not possible while the system runs", now.Stage, next.Stage)
	}
	for _, name := range slices.Sorted(maps.Keys(next.Knobs)) {
		if name != "web.hosts" && now.Knobs[name] != next.Knobs[name] {
			return nil, fmt.Errorf("knob %s from %s to %s: not possible while the system runs", name, now.Knobs[name], next.Knobs[name])
		}
	}
	for _, h := range next.Hosts {
		if old, found := now.Host(h.Name); found && old != h {
			return nil, fmt.Errorf("host %s would change its size: not possible while the system runs", h.Name)
		}
	}
	for _, n := range next.Nodes {
		old, found := now.Node(n.Name)
		if !found {
			continue
		}
		if !slices.Equal(old.Uses, n.Uses) || !reflect.DeepEqual(old.Routes, n.Routes) {
			told = append(told, n.Name)
		}
		old.Uses, old.Routes = n.Uses, n.Routes
		if !reflect.DeepEqual(old, n) {
			return nil, fmt.Errorf("node %s would become another one: not possible while the system runs", n.Name)
		}
	}
	for _, name := range told {
		if n, _ := next.Node(name); n.Role != sut.Balance && n.Service != sut.Uploads {
			return nil, fmt.Errorf("node %s cannot be told of other nodes while it runs", name)
		}
	}
	return told, nil
}

// adopt makes a topology the one that the nodes are told of, also those that are
// restarted from now on.
func (s *System) adopt(t sut.Topology) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.topology = t
	nodes := map[string]*node{}
	for _, n := range s.nodes {
		nodes[n.Name] = n
	}
	for _, declared := range t.Nodes {
		n := nodes[declared.Name]
		if n == nil {
			continue
		}
		// The rest of what is declared has not changed, and is read without a lock.
		n.Uses, n.Routes, n.uses = declared.Uses, declared.Routes, nil
		for _, name := range declared.Uses {
			n.uses = append(n.uses, nodes[name])
		}
	}
}

// tell gives nodes their memberships, and returns when what is listed no more has
// been drained.
func (s *System) tell(ctx context.Context, names []string) error {
	group, ctx := errgroup.WithContext(ctx)
	_, nodes := s.members()
	for _, n := range nodes {
		if slices.Contains(names, n.Name) {
			group.Go(func() error { return s.tellOne(ctx, n) })
		}
	}
	return group.Wait()
}

// tellOne gives a node its membership. A node that is dead, or dies meanwhile,
// gets it with the configuration of its next start; one that is on its way up may
// have been given the one before, and is told when it serves.
func (s *System) tellOne(ctx context.Context, n *node) error {
	if err := s.await(ctx, func() bool { return !n.launching }); err != nil {
		return err
	}
	s.mu.Lock()
	config, admin, process, state := s.configFor(n), n.ready.Admin, n.process, n.state
	s.mu.Unlock()
	switch {
	case state == targets.Paused:
		return pausedError(n.Name)
	case state != targets.Serving:
		return nil
	}
	document, err := json.Marshal(config.Wiring)
	if err != nil {
		return fmt.Errorf("write the membership of %s: %w", n.Name, err)
	}
	bounded, cancel := context.WithTimeout(ctx, drainBound+tellBound)
	defer cancel()
	req, err := http.NewRequestWithContext(bounded, http.MethodPut, "http://"+admin+sut.WiringPath, bytes.NewReader(document))
	if err != nil {
		return fmt.Errorf("tell %s: %w", n.Name, err)
	}
	req.Close = true // a connection that is kept may be one to a process that has died
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set(sut.DrainHeader, strconv.FormatFloat(drainBound.Seconds(), 'f', -1, 64))
	begin := time.Now()
	response, err := http.DefaultClient.Do(req)
	if err != nil {
		late := time.NewTimer(deathBound)
		defer late.Stop()
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-process.Done():
			return nil
		case <-late.C:
			return fmt.Errorf("tell %s: %w", n.Name, err)
		}
	}
	defer func() { _ = response.Body.Close() }() // read only
	switch response.StatusCode {
	case http.StatusNoContent:
		s.noted(n, "told of %d hosts, after %v", len(config.Wiring.Uses[sut.Web]), time.Since(begin).Round(time.Millisecond))
		return nil
	case http.StatusGatewayTimeout:
		s.noted(n, "hosts that leave still have work after %v", drainBound)
		return nil
	}
	text, _ := io.ReadAll(io.LimitReader(response.Body, 1<<10)) // what can be had of the reason
	return fmt.Errorf("tell %s: %s: %s", n.Name, response.Status, bytes.TrimSpace(text))
}

// nonePaused refuses a change that a paused node would have to be told of.
func (s *System) nonePaused(names []string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, n := range s.nodes {
		if n.state == targets.Paused && slices.Contains(names, n.Name) {
			return pausedError(n.Name)
		}
	}
	return nil
}

func pausedError(node string) error {
	return fmt.Errorf("%s is paused, and could not be told\nlet it go on first: stagebench resume %s", node, node)
}

func (s *System) noted(n *node, format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.note(n, format, args...)
}

// dismiss stops and removes what is not part of the topology. Nobody may use it
// any more.
func (s *System) dismiss(ctx context.Context, t sut.Topology) error {
	s.mu.Lock()
	var goingHosts []*host
	var goingNodes []*node
	s.hosts = slices.DeleteFunc(slices.Clone(s.hosts), func(h *host) bool {
		_, stays := t.Host(h.Name)
		if !stays {
			goingHosts = append(goingHosts, h)
		}
		return !stays
	})
	s.nodes = slices.DeleteFunc(slices.Clone(s.nodes), func(n *node) bool {
		_, stays := t.Node(n.Name)
		if !stays {
			goingNodes = append(goingNodes, n)
		}
		return !stays
	})
	s.mu.Unlock()
	var errs []error
	for _, n := range goingNodes {
		n.endLife()
		n.watched.Wait()
	}
	for _, h := range goingHosts {
		errs = append(errs, h.budget.Lift())
	}
	s.stopAll(ctx, goingNodes)
	for _, n := range goingNodes {
		s.noted(n, "left")
		errs = append(errs, os.RemoveAll(n.dir))
	}
	for _, h := range goingHosts {
		errs = append(errs, h.budget.Remove())
	}
	return errors.Join(errs...)
}
