package local

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/failover"
)

// maxAnswer bounds what a node may answer: all that a database has lost, at most.
const maxAnswer = 256 << 20

// declareRoles sets the first roles of the databases: the one that uses no other
// is the primary, and all others may be read once they are ready.
func (s *System) declareRoles(t sut.Topology) {
	for _, n := range t.Nodes {
		switch {
		case !n.Replicated:
		case t.SeveralPrimaries():
			s.roles.Epoch, s.roles.Primaries = 1, append(s.roles.Primaries, n.Name)
		case len(n.Uses) == 0:
			s.roles.Epoch, s.roles.Primary = 1, n.Name
		default:
			s.roles.Replicas = append(s.roles.Replicas, n.Name)
		}
	}
}

// superviseCopies keeps one of the databases the primary, as long as the system
// lives, if there are several.
func (s *System) superviseCopies(ctx context.Context) error {
	if s.roles.Epoch == 0 {
		return nil
	}
	if s.roles.Primary == "" {
		// They have been started at once, and did not know each other's addresses.
		if err := s.tellOrigins(ctx); err != nil {
			return err
		}
	}
	db := ladder.DBOf(s.topology.Knobs)
	s.failover = failover.New(failover.Config{
		Copies: copies{s}, Roles: s.roles, Silence: s.opts.Silence,
		Interval: db.ProbeInterval, Failures: db.ProbeFailures,
		Note: func(name, text string) {
			if n := s.node(name); n != nil {
				s.noted(n, "%s", text)
			}
		},
	})
	s.watching.Go(func() { s.failover.Run(s.life) })
	return nil
}

// Failovers lists the changes of the primary so far.
func (s *System) Failovers() []targets.Failover {
	if s.failover == nil {
		return nil
	}
	return s.failover.Failovers()
}

// Recover says what failovers have cost: what the databases that were the primary
// held, and the ones that took their place did not get. With replay that is done
// once more at the primary, where it can.
func (s *System) Recover(ctx context.Context, replay bool) (targets.Recovery, error) {
	recovery := targets.Recovery{Failovers: s.Failovers(), Lost: []sut.Lost{}}
	if s.failover == nil {
		return recovery, fmt.Errorf("stage %s has one database and no copies of it: nothing can be lost in a failover", s.Topology().Stage)
	}
	s.mu.Lock()
	if s.roles.Primary == "" {
		s.mu.Unlock()
		return recovery, errors.New("each of several primaries keeps what it has: nothing is promoted, and nothing lost by that")
	}
	order := sut.Replay{Primary: s.peers([]string{s.roles.Primary})[0]}
	var asked []*node
	for _, n := range s.nodes {
		back := !slices.ContainsFunc(recovery.Failovers, func(f targets.Failover) bool { return f.From == n.Name && f.ReplaceNS == 0 })
		switch {
		case !n.Replicated:
		case n.state != targets.Serving || !back && n.Name != s.roles.Primary:
			recovery.Lost = append(recovery.Lost, sut.Lost{Node: n.Name, Partial: "it is not back yet: what it alone held is not known, ask again"})
		default:
			asked = append(asked, n)
		}
	}
	s.mu.Unlock()
	for _, n := range asked {
		var lost sut.Lost
		if err := s.call(ctx, n, http.MethodGet, sut.LostPath, nil, &lost); err != nil {
			recovery.Lost = append(recovery.Lost, sut.Lost{Node: n.Name, Partial: "what it alone held is not known: " + err.Error()})
			continue
		}
		if lost.Epoch == 0 {
			continue
		}
		recovery.Lost = append(recovery.Lost, lost)
		if !replay || lost.Replayed || len(lost.Changes) == 0 {
			continue
		}
		var done sut.Replayed
		if err := s.call(ctx, n, http.MethodPost, sut.LostPath, order, &done); err != nil {
			done = sut.Replayed{Refused: []string{err.Error()}}
		}
		if recovery.Replayed == nil {
			recovery.Replayed = map[string]sut.Replayed{}
		}
		recovery.Replayed[n.Name] = done
	}
	return recovery, nil
}

// standing is what a database is among its copies; the caller holds mu.
func (s *System) standing(n *node) targets.Standing {
	switch {
	case !n.Replicated:
		return ""
	case n.Name == s.roles.Primary, s.roles.Primary == "":
		return targets.Primary
	}
	return targets.Replica
}

// node returns the node of that name, nil if there is none.
func (s *System) node(name string) *node {
	_, nodes := s.members()
	for _, n := range nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// peer is how others reach a node; the caller holds mu.
func (n *node) peer() sut.Peer {
	return sut.Peer{Node: n.Name, Address: n.ready.Address, Weight: n.Weight}
}

// peers returns those nodes, in that order; the caller holds mu.
func (s *System) peers(names []string) []sut.Peer {
	var all []sut.Peer
	for _, name := range names {
		if i := slices.IndexFunc(s.nodes, func(n *node) bool { return n.Name == name }); i >= 0 {
			all = append(all, s.nodes[i].peer())
		}
	}
	return all
}

// readsDatabases says whether a node is told which databases to use.
func (n *node) readsDatabases() bool {
	return !n.Replicated && slices.ContainsFunc(n.uses, func(used *node) bool { return used.Role == sut.DB })
}

// databases are those that a node uses.
type databases struct {
	Epoch    int64
	Primary  sut.Peer
	Replicas []sut.Peer // that may be read
}

// databases are those that a node uses; the caller holds mu. Of several primaries
// each of the same role has one of its own, in turn.
func (s *System) databases(user *node) databases {
	if len(s.roles.Primaries) > 0 {
		turn := 0
		for _, n := range s.nodes {
			if n == user {
				break
			}
			if n.Role == user.Role {
				turn++
			}
		}
		return databases{Epoch: s.roles.Epoch, Primary: s.peers(s.roles.Primaries)[turn%len(s.roles.Primaries)]}
	}
	return databases{Epoch: s.roles.Epoch, Primary: s.peers([]string{s.roles.Primary})[0], Replicas: s.peers(s.roles.Replicas)}
}

// replication is what a database is told of its copies; the caller holds mu.
func (s *System) replication(n *node) *sut.Replication {
	if s.roles.Primary == "" {
		return &sut.Replication{Epoch: s.roles.Epoch, Several: true, Origins: s.origins(n)}
	}
	told := &sut.Replication{Epoch: s.roles.Epoch}
	if s.roles.Primary != n.Name {
		told.Primary = &s.peers([]string{s.roles.Primary})[0]
	}
	return told
}

// origins are those that one of several primaries gets changes from: the one before
// it of those that live in a ring, else all others. Those that have no address yet
// are left out. The caller holds mu.
func (s *System) origins(n *node) []sut.Peer {
	var before, others []sut.Peer
	after := false
	for _, other := range s.nodes {
		switch {
		case other == n:
			after = true
		case !other.Replicated || other.ready.Address == "":
		case ladder.DBOf(s.topology.Knobs).Topology != ladder.Ring:
			others = append(others, other.peer())
		case !slices.Contains(s.roles.Primaries, other.Name):
			// Its neighbours are each other's until it comes back.
		case after:
			others = append(others, other.peer())
		default:
			before = append(before, other.peer())
		}
	}
	if ladder.DBOf(s.topology.Knobs).Topology != ladder.Ring || len(before)+len(others) == 0 {
		return others
	}
	ring := append(others, before...) // in the order after the node: the last one is before it
	return ring[len(ring)-1:]
}

// tellOrigins tells each of several primaries whom to get changes from.
func (s *System) tellOrigins(ctx context.Context) error {
	s.mu.Lock()
	told := map[*node]*sut.Replication{}
	for _, n := range s.nodes {
		if n.Replicated && n.state == targets.Serving {
			told[n] = s.replication(n)
		}
	}
	s.mu.Unlock()
	errs := make(chan error, len(told))
	for n, document := range told {
		go func() { errs <- s.call(ctx, n, http.MethodPut, sut.ReplicationPath, document, nil) }()
	}
	var all error
	for range told {
		all = errors.Join(all, <-errs)
	}
	return all
}

// copies is the system as the supervisor of its databases sees it.
type copies struct{ *System }

// Look implements failover.Copies.
func (c copies) Look(ctx context.Context, name string) (status sut.ReplicationStatus, err error) {
	err = c.call(ctx, c.node(name), http.MethodGet, sut.ReplicationPath, nil, &status)
	if err == nil && status.Node != name {
		err = fmt.Errorf("%s answers at the address of %s", status.Node, name) // which has died, and had its port
	}
	return status, err
}

// Become implements failover.Copies.
func (c copies) Become(ctx context.Context, name string, epoch int64, primary string) error {
	next := sut.Replication{Epoch: epoch}
	if primary != name {
		c.mu.Lock()
		next.Primary = &c.peers([]string{primary})[0]
		c.mu.Unlock()
	}
	return c.call(ctx, c.node(name), http.MethodPut, sut.ReplicationPath, next, nil)
}

// Fence implements failover.Copies: it kills all processes of the node.
func (c copies) Fence(ctx context.Context, name string) (release func(), err error) {
	n := c.node(name)
	c.mu.Lock()
	if n.serves() {
		n.asked = true
		c.set(n, targets.Dead)
	}
	c.note(n, "fenced")
	c.mu.Unlock()
	c.hold([]*node{n}, 1)
	defer func() {
		if err != nil {
			c.hold([]*node{n}, -1)
		}
	}()
	if err := n.leaf.KillAll(); err != nil {
		return nil, err
	}
	// A start that had begun before may have got past the first blow.
	if err := c.await(ctx, func() bool { return !n.launching }); err != nil {
		return nil, err
	}
	if err := n.leaf.KillAll(); err != nil {
		return nil, err
	}
	return func() { c.hold([]*node{n}, -1) }, nil
}

// Use implements failover.Copies.
func (c copies) Use(ctx context.Context, roles failover.Roles) error {
	c.mu.Lock()
	c.roles = roles
	told := map[*node]sut.Wiring{}
	var late error
	for _, n := range c.nodes {
		switch {
		case !n.readsDatabases():
		case n.launching || n.state == targets.Paused:
			late = fmt.Errorf("%s is %s", n.Name, n.state)
		case n.state == targets.Serving:
			told[n] = c.configFor(n).Wiring
		}
	}
	c.mu.Unlock()
	errs := make(chan error, len(told)+1)
	go func() {
		if roles.Primary == "" {
			errs <- c.tellOrigins(ctx)
		} else {
			errs <- nil
		}
	}()
	for n, wiring := range told {
		go func() { errs <- c.call(ctx, n, http.MethodPut, sut.WiringPath, wiring, nil) }()
	}
	for range len(told) + 1 {
		late = errors.Join(late, <-errs)
	}
	return late
}

// call asks a node at its admin address.
func (s *System) call(ctx context.Context, n *node, method, path string, document, answer any) error {
	s.mu.Lock()
	admin := n.ready.Admin
	s.mu.Unlock()
	var body io.Reader
	if document != nil {
		text, err := json.Marshal(document)
		if err != nil {
			return fmt.Errorf("write what %s is told: %w", n.Name, err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, method, "http://"+admin+path, body)
	if err != nil {
		return fmt.Errorf("%s %s of %s: %w", method, path, n.Name, err)
	}
	// A connection that is kept may be one to a process that has died: what only
	// looks is asked once more then, on a new one, and is cheaper for the node.
	req.Close = method != http.MethodGet
	response, err := s.admin.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", n.Name, err)
	}
	defer func() { _ = response.Body.Close() }() // read only
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	switch {
	case err == nil && len(text) == maxAnswer:
		return fmt.Errorf("%s %s of %s: the answer is larger than %d MiB", method, path, n.Name, maxAnswer>>20)
	case err != nil:
		return fmt.Errorf("%s %s of %s: %w", method, path, n.Name, err)
	case response.StatusCode >= 300:
		return fmt.Errorf("%s %s of %s: %s: %s", method, path, n.Name, response.Status, bytes.TrimSpace(text))
	case answer == nil:
		return nil
	}
	if err := json.Unmarshal(text, answer); err != nil {
		return fmt.Errorf("%s %s of %s: %w", method, path, n.Name, err)
	}
	return nil
}
