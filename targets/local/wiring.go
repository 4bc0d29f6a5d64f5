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
	"strconv"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/proc"
)

const (
	// answerBound is how long a node may take to answer, in addition to the time to drain.
	answerBound = 5 * time.Second
	// deathBound is how long a dead process may take to end completely after its connections
	// broke. Its log is read to the end first.
	deathBound = 2 * time.Second
	// maxAnswer bounds an answer, in bytes. The largest answer is the list of lost writes.
	maxAnswer = 256 << 20
)

// After these errors of sendWiring the node still gets its new wiring: it has it already, or gets
// it at its next start.
var (
	errLate = errors.New("it did not finish in time")
	errDead = errors.New("the node is dead")
)

// scalingOf returns how the nodes of a role hand over keys to each other when their tier is
// scaled, zero if they do not.
func scalingOf(r sut.Role) ladder.Scaling {
	for _, t := range ladder.Tiers() {
		if t.Role != r {
			continue
		}
		if i := slices.IndexFunc(t.Scaling, func(s ladder.Scaling) bool { return s.Sharded }); i >= 0 {
			return t.Scaling[i]
		}
	}
	return ladder.Scaling{}
}

// change calls a function with mu held that changes the wirings, and increments their epoch.
func (s *System) change(change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.epoch++
	change()
	s.wake()
}

// wiringFor returns the current wiring of a node. The caller holds mu.
func (s *System) wiringFor(n *node) sut.Wiring {
	w := sut.Wiring{
		Epoch: s.epoch, Routes: n.Routes, Uses: map[sut.Role][]sut.Peer{}, Sessions: s.sessionsFor(n),
		Unsticky: s.unsticky && n.Role == sut.Balance,
	}
	for _, used := range n.uses {
		w.Uses[used.Role] = append(w.Uses[used.Role], used.peer())
	}
	switch {
	case n.Replicated:
		delete(w.Uses, sut.DB) // its sut.Replication names its primary
		for _, member := range s.nodes {
			if member.Replicated && member.Shard == n.Shard && member != n {
				w.Members = append(w.Members, member.Name)
			}
		}
	case n.calls(sut.DB) && len(s.replicaSets) > 0:
		w.Uses[sut.DB] = s.databasesFor(n)
	}
	for _, leaving := range s.draining {
		listed := slices.ContainsFunc(w.Uses[leaving.Role], func(p sut.Peer) bool { return p.Node == leaving.Name })
		if n.calls(leaving.Role) && !listed { // a database is listed until its supervisor removes it
			w.Uses[leaving.Role] = append(w.Uses[leaving.Role], leaving.drainingPeer())
		}
	}
	if !scalingOf(n.Role).Sharded {
		return w
	}
	w.Rebalancing = n.joining || s.moving == n.Role
	for _, member := range s.nodes {
		switch {
		case member.Role != n.Role || member.ready.Address == "" || member.joining && !n.joining:
		case member.leaving:
			w.Uses[n.Role] = append(w.Uses[n.Role], member.drainingPeer())
		default:
			w.Uses[n.Role] = append(w.Uses[n.Role], member.peer())
		}
	}
	return w
}

// databasesFor lists the databases that a node calls: of each set that it uses, the primary
// first, and then the replicas that serve reads. In a multi-primary database each node calls
// one primary; the nodes of a role get them round-robin. The caller holds mu.
func (s *System) databasesFor(n *node) (all []sut.Peer) {
	for _, set := range s.replicaSets {
		roles := set.roles
		switch {
		case !slices.ContainsFunc(n.uses, set.has): // a shard that is being added or removed
		case len(roles.Primaries) == 0:
			all = append(all, s.peers(append([]string{roles.Primary}, roles.Replicas...))...)
		default:
			index := 0 // of the node among the nodes of its role
			for _, other := range s.nodes[:slices.Index(s.nodes, n)] {
				if other.Role == n.Role {
					index++
				}
			}
			all = append(all, s.peers(roles.Primaries[index%len(roles.Primaries):][:1])...)
		}
	}
	return all
}

// calls reports whether a node sends requests to nodes of a role. Replication does not
// count. The caller holds System.mu.
func (n *node) calls(r sut.Role) bool {
	return n.Role != sut.DB && slices.ContainsFunc(n.uses, func(used *node) bool { return used.Role == r })
}

// peer returns the entry of a node in the wirings of others. The caller holds System.mu.
func (n *node) peer() sut.Peer {
	return sut.Peer{Node: n.Name, Address: n.ready.Address, Shard: n.Shard, Weight: n.Weight}
}

// drainingPeer returns the entry of a leaving node. The caller holds System.mu.
func (n *node) drainingPeer() sut.Peer {
	p := n.peer()
	p.Draining = true
	return p
}

// peers returns the entries of nodes in the order of the names. The caller holds mu.
func (s *System) peers(names []string) []sut.Peer {
	var all []sut.Peer
	for _, name := range names {
		if i := slices.IndexFunc(s.nodes, func(n *node) bool { return n.Name == name }); i >= 0 {
			all = append(all, s.nodes[i].peer())
		}
	}
	return all
}

// node returns the node with this name, nil if there is none.
func (s *System) node(name string) *node {
	_, nodes := s.members()
	for _, n := range nodes {
		if n.Name == name {
			return n
		}
	}
	return nil
}

// sendWiring sends a node its wiring. It returns when the node uses the wiring and has drained.
// For a starting node it waits until the node serves, because the node may have started
// with an older wiring. The error is errLate if draining takes longer than patience, and
// errDead if the node is dead or dies. A paused node is an error, too.
func (s *System) sendWiring(ctx context.Context, n *node, patience time.Duration) error {
	for retried := int64(-1); ; { // epoch of the wiring that was last retried
		var wiring sut.Wiring
		process, err := s.serving(ctx, n, "get the new wiring", func() { wiring = s.wiringFor(n) })
		if err != nil {
			return err
		}
		bounded, cancel := context.WithTimeout(ctx, patience+answerBound)
		err = s.call(bounded, n.Name, request{
			method: http.MethodPut, path: sut.WiringPath, document: wiring,
			drain: strconv.FormatFloat(patience.Seconds(), 'f', -1, 64),
		})
		cancel()
		var refused *refusal
		switch {
		case err == nil:
			return nil
		case !errors.As(err, &refused):
			return deathOf(ctx, process, fmt.Errorf("send a wiring: %w", err))
		case refused.status == http.StatusGatewayTimeout:
			return errLate
		case refused.status == http.StatusConflict && wiring.Epoch != retried:
			// Another call has sent a newer wiring, but the node may still be draining for it.
			retried = wiring.Epoch
		default:
			return fmt.Errorf("send a wiring to %s: %w", n.Name, err)
		}
	}
}

// deathOf returns errDead if a connection broke because the process died. If the process is
// alive, it returns the other error.
func deathOf(ctx context.Context, process *proc.Process, otherwise error) error {
	late := time.NewTimer(deathBound)
	defer late.Stop()
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-process.Done():
		return errDead
	case <-late.C:
		return otherwise
	}
}

// serving waits until a node is not starting, and returns its process. read is called with mu held, unless it is nil.
// The error is errDead if the node does not serve. If it is paused, the error says that it cannot do something now.
func (s *System) serving(ctx context.Context, n *node, something string, read func()) (*proc.Process, error) {
	if err := s.await(ctx, func() bool { return !n.launching }); err != nil {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch n.state {
	case targets.Serving:
	case targets.Paused:
		return nil, pausedError(n.Name, something)
	default:
		return nil, errDead
	}
	if read != nil {
		read()
	}
	return n.process, nil
}

func pausedError(node, something string) error {
	return fmt.Errorf("%s is paused and cannot %s\nresume it first: stagebench resume %s", node, something, node)
}

// request is a request to a node's admin address.
type request struct {
	method, path     string
	document, answer any    // JSON; nil = none
	drain            string // value of sut.DrainHeader
}

// refusal is the error for a response with a status of 300 or more.
type refusal struct {
	status int
	text   string
}

func (r *refusal) Error() string { return r.text }

// call sends a request to a node's admin address and decodes the response.
func (s *System) call(ctx context.Context, name string, r request) error {
	s.mu.Lock()
	var admin string
	for _, n := range s.nodes {
		if n.Name == name {
			admin = n.ready.Admin
		}
	}
	s.mu.Unlock()
	if admin == "" {
		return fmt.Errorf("there is no node %s", name)
	}
	what := r.method + " " + r.path + " of " + name
	var body io.Reader
	if r.document != nil {
		text, err := json.Marshal(r.document)
		if err != nil {
			return fmt.Errorf("%s: %w", what, err)
		}
		body = bytes.NewReader(text)
	}
	req, err := http.NewRequestWithContext(ctx, r.method, "http://"+admin+r.path, body)
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	// A kept connection may belong to a process that has died. The HTTP client retries a GET
	// on a new connection, but no other method. Any other method uses a new connection.
	req.Close = r.method != http.MethodGet
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("Authorization", s.secret.Bearer())
	if r.drain != "" {
		req.Header.Set(sut.DrainHeader, r.drain)
	}
	response, err := s.admin.Do(req)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	defer func() { _ = response.Body.Close() }() // read only
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer))
	switch {
	case err == nil && len(text) == maxAnswer:
		return fmt.Errorf("%s: the answer is larger than %d MiB", what, maxAnswer>>20)
	case err != nil:
		return fmt.Errorf("%s: %w", what, err)
	case response.StatusCode >= 300:
		return &refusal{response.StatusCode, fmt.Sprintf("%s: %s: %s", what, response.Status, bytes.TrimSpace(text))}
	case r.answer == nil:
		return nil
	}
	if err := json.Unmarshal(text, r.answer); err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}
