package haproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// spares is the number of spare slots for hosts that the server was not started with.
const spares = 16

// backend is the hosts of one route, with a slot for every host and spare slots.
type backend struct {
	name, cookie string
	route        sut.Route
	slots        []slot
}

// slot is a slot for a host in a backend. HAProxy calls it a server.
type slot struct {
	name, address string
	weight        int
	used          bool // the backend's route has the host
	draining      bool // layer 4: not used any more, but it may have connections
}

// slots maps hosts to slots. The name of a slot never changes. The slots of the hosts of
// the start are named like the hosts.
type slots struct {
	cfg sut.Balancing

	mu      sync.Mutex
	scale   float64 // factor from weights of hosts to weights of HAProxy
	members sut.Upstreams
	slot    map[string]string // slots by node, also of removed nodes
	peers   map[string]sut.Peer
	nodes   []string // in the order in which they were added
	spare   []string // slots that no host has used yet
	// The keys of the following maps are "backend/slot".
	applied map[string]slot   // the state that the running server has
	joined  map[string]uint64 // number of times a host was added, which HAProxy counts as down
	// ejections is the number of times that a node was ejected for its responses.
	ejections map[string]uint64
}

func newSlots(cfg sut.Balancing) *slots {
	p := &slots{cfg: cfg, members: cfg.Upstreams}
	p.reset()
	return p
}

// reset returns the backends for a server that starts with the current members. Their
// slots are named like the hosts.
func (p *slots) reset() []backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.slot, p.peers, p.nodes, p.spare = map[string]string{}, map[string]sut.Peer{}, nil, nil
	p.applied, p.joined, p.ejections = map[string]slot{}, map[string]uint64{}, map[string]uint64{}
	for _, peer := range p.members.Peers {
		p.slot[peer.Node], p.peers[peer.Node] = peer.Node, peer
		p.nodes = append(p.nodes, peer.Node)
	}
	p.rescale()
	for i := range spares {
		p.spare = append(p.spare, fmt.Sprintf("spare-%d", i+1))
	}
	backends := p.backends()
	for _, b := range backends {
		for _, now := range b.slots {
			p.applied[b.name+"/"+now.name] = now
		}
	}
	return backends
}

// rescale sets the scale so that all weights fit into HAProxy's, which are whole numbers
// up to 256. The caller holds the mutex.
func (p *slots) rescale() {
	heaviest := 1.0
	for _, peer := range p.members.Peers {
		heaviest = max(heaviest, peer.Weight)
	}
	p.scale = min(10, 256/heaviest)
}

// backends returns the backends with all slots. The caller holds the mutex.
func (p *slots) backends() []backend {
	var all []backend
	web := backend{name: "web", cookie: sut.StickyCookie}
	for i, route := range p.members.Routes {
		b := backend{name: fmt.Sprintf("route-%d", i+1), cookie: fmt.Sprintf("%s-%d", sut.StickyCookie, i+1), route: route}
		if b.conditions() == "" {
			web.route = route
			break // this route matches every request, so later ones are never used
		}
		all = append(all, b)
	}
	all = append(all, web)
	for i := range all {
		b := &all[i]
		for _, node := range p.nodes {
			b.slots = append(b.slots, slot{
				name: p.slot[node], address: p.peers[node].Address, weight: p.weight(p.peers[node]),
				used: p.member(node) && (b.route.To == nil || slices.Contains(b.route.To, node)),
			})
		}
		for _, name := range p.spare {
			b.slots = append(b.slots, slot{name: name, address: unusedAddress, weight: 1})
		}
	}
	return all
}

// unusedAddress is the address of a spare slot: the discard service. HAProxy does not
// connect to it, because the slot is in maintenance.
const unusedAddress = "127.0.0.1:9"

// hashWeight is the weight of every host under sut.PolicyIPHash. HAProxy puts a host at 16
// points of the hash circle per unit of weight. With few points, shares are uneven.
const hashWeight = 16

// weight returns the weight of a host for HAProxy.
func (p *slots) weight(peer sut.Peer) int {
	switch p.cfg.Policy {
	case sut.PolicyWeightedRoundRobin:
	case sut.PolicyIPHash:
		return hashWeight
	default:
		return 1
	}
	return min(max(int(math.Round(cmp.Or(peer.Weight, 1)*p.scale)), 1), 256)
}

// member reports whether a node is a member. The caller holds the mutex.
func (p *slots) member(node string) bool {
	return slices.ContainsFunc(p.members.Peers, func(peer sut.Peer) bool { return peer.Node == node })
}

// ejected counts an ejection of a node.
func (p *slots) ejected(node string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ejections[node]++
}

// nodeIn returns the node in a slot; "" = none. The caller holds the mutex.
func (p *slots) nodeIn(name string) string {
	i := slices.IndexFunc(p.nodes, func(node string) bool { return p.slot[node] == name })
	if i < 0 {
		return ""
	}
	return p.nodes[i]
}

// step changes one slot of a backend in the running server.
type step struct {
	key      string // "backend/slot"
	now      slot   // the new state
	joins    bool   // a host is added to the backend
	commands []string
}

// change sets the members. It returns the steps that change the running server, and the
// slots of removed hosts. healthy says which slots are up in any backend.
func (p *slots) change(m sut.Upstreams, healthy map[string]bool) (steps []step, removed []string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.check(m); err != nil {
		return nil, nil, err
	}
	p.members = m
	p.rescale()
	var removals []step
	for _, peer := range m.Peers {
		if _, known := p.slot[peer.Node]; !known {
			p.slot[peer.Node], p.spare = p.spare[0], p.spare[1:]
			p.nodes = append(p.nodes, peer.Node)
		}
		p.peers[peer.Node] = peer
	}
	for _, b := range p.backends() {
		for _, now := range b.slots {
			key := b.name + "/" + now.name
			switch s := p.step(key, p.applied[key], now, healthy[now.name]); {
			case len(s.commands) == 0:
			case now.used:
				steps = append(steps, s)
			default:
				removals = append(removals, s)
			}
		}
	}
	for _, node := range p.nodes {
		if !p.member(node) {
			removed = append(removed, p.slot[node])
		}
	}
	// Removals come last: else a backend could lose its last host before it gets the next.
	return append(steps, removals...), removed, nil
}

// done records that the running server has executed a step.
func (p *slots) done(s step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.applied[s.key] = s.now
	if s.joins {
		p.joined[s.key]++
	}
}

// check returns an error if a running server cannot change to these upstreams.
func (p *slots) check(m sut.Upstreams) error {
	next := p.cfg
	next.Upstreams = m
	if err := next.Validate(); err != nil {
		return err
	}
	if !slices.Equal(conditionsOf(m.Routes), conditionsOf(p.members.Routes)) {
		return errors.New("routes: a running HAProxy cannot change the conditions of its routes: restart it")
	}
	added := 0
	for _, peer := range m.Peers {
		if _, known := p.slot[peer.Node]; !known {
			added++
		}
	}
	if added > len(p.spare) {
		return fmt.Errorf("%d new hosts: HAProxy has %d spare slots: restart it", added, len(p.spare))
	}
	return nil
}

// conditionsOf returns the conditions of the routes that have their own backend.
func conditionsOf(routes []sut.Route) (all []string) {
	for _, r := range routes {
		conditions := backend{route: r}.conditions()
		if conditions == "" {
			break // this route has the backend web
		}
		all = append(all, conditions)
	}
	return all
}

// step returns the step that changes a slot from was to now. Source: HAProxy, Management
// Guide, section 9.3, Unix socket commands.
func (p *slots) step(key string, was, now slot, healthy bool) step {
	s := step{key: key, now: now}
	set := func(format string, args ...any) {
		s.commands = append(s.commands, "set server "+key+" "+fmt.Sprintf(format, args...))
	}
	// HAProxy knows the health of a host only for an unchanged address. The host must
	// also be in this backend, be draining in it (its checks go on), or be up in another
	// backend. A host of unknown health is down until its first passed check.
	known := was.address == now.address && (was.used || was.draining || healthy)
	if now.used && was.weight != now.weight {
		set("weight %d", now.weight)
	}
	switch {
	case now.used && !known:
		s.joins = true
		// The host must be down until its first passed check. A slot in maintenance cannot
		// be set to down, and a slot in state ready would be up at once.
		set("state drain")
		host, port, _ := net.SplitHostPort(now.address) // validated
		set("addr %s port %s", host, port)
		set("health down")
		set("state ready")
	case now.used && !was.used:
		set("state ready")
	case !now.used && was.used && p.cfg.Layer == sut.Layer4:
		s.now.draining = true
		set("state drain") // maintenance would close its connections
	case !now.used && was.used:
		set("state maint") // in state drain it would keep the users whose cookie names it
	default:
		s.now.draining = was.draining
	}
	return s
}

// maintenance returns the steps that put all draining hosts of layer 4 into maintenance,
// which ends their health checks.
func (p *slots) maintenance() (steps []step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for key, was := range p.applied {
		if was.draining && !was.used {
			was.draining = false
			steps = append(steps, step{key: key, now: was, commands: []string{"set server " + key + " state maint"}})
		}
	}
	return steps
}

// drainPoll is the time between two checks whether removed hosts are idle.
const drainPoll = 5 * time.Millisecond

// SetUpstreams changes the hosts while the server runs. It returns when the removed hosts
// have no requests or connections left, or with the error of ctx. Routes keep their
// conditions. An error that wraps sut.ErrWiring means that nothing changed. After any
// other error the same call may be repeated.
func (h *Server) SetUpstreams(ctx context.Context, m sut.Upstreams) error {
	removed, err := h.apply(ctx, m)
	if err == nil {
		err = h.awaitIdle(ctx, removed)
	}
	if err == nil {
		err = h.retire(ctx, removed)
	}
	if err != nil {
		return fmt.Errorf("haproxy: %w", err)
	}
	return nil
}

// awaitIdle waits until the hosts in those slots have no requests or connections left.
func (h *Server) awaitIdle(ctx context.Context, removed []string) error {
	poll := time.NewTicker(drainPoll)
	defer poll.Stop()
	for {
		rows, err := h.rows(ctx)
		if err != nil || !slices.ContainsFunc(rows, func(row map[string]string) bool {
			return slices.Contains(removed, row["svname"]) && row["scur"] != "0"
		}) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("removed hosts still have requests or connections: %w", ctx.Err())
		case <-poll.C:
		}
	}
}

// apply changes the hosts of the running server and returns the slots of removed hosts.
func (h *Server) apply(ctx context.Context, m sut.Upstreams) (removed []string, err error) {
	h.changing.Lock()
	defer h.changing.Unlock()
	rows, err := h.rows(ctx)
	if err != nil {
		return nil, err
	}
	healthy := map[string]bool{}
	for _, row := range rows {
		healthy[row["svname"]] = healthy[row["svname"]] || strings.HasPrefix(row["status"], "UP")
	}
	steps, removed, err := h.slots.change(m, healthy)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", sut.ErrWiring, err)
	}
	if err := h.take(ctx, steps); err != nil || !h.cfg.Sticky {
		return removed, err
	}
	// The command is experimental up to now (2.6 to 3.2).
	set := fmt.Sprintf("set var %s bool(%t)", unstickyVariable, m.Unsticky)
	err = h.execute(ctx, []string{"experimental-mode on", set})
	h.unsticky.Store(err == nil && m.Unsticky)
	return removed, err
}

// retire puts removed hosts that are idle into maintenance.
func (h *Server) retire(ctx context.Context, removed []string) error {
	h.changing.Lock()
	defer h.changing.Unlock()
	var steps []step
	for _, s := range h.slots.maintenance() {
		// A later change may have removed other hosts, which are not idle yet.
		if slices.Contains(removed, s.now.name) {
			steps = append(steps, s)
		}
	}
	return h.take(ctx, steps)
}

// take executes steps in the running server.
func (h *Server) take(ctx context.Context, steps []step) error {
	for _, s := range steps {
		if err := h.execute(ctx, s.commands); err != nil {
			return err
		}
		h.slots.done(s)
	}
	return nil
}

// execute executes commands in the running server. They go in one line, so that a host never gets a request in a state
// between them.
func (h *Server) execute(ctx context.Context, commands []string) error {
	answer, err := h.ask(ctx, strings.Join(commands, "; "))
	if err != nil {
		return err
	}
	// An empty answer means success. HAProxy confirms only a new address.
	for line := range strings.Lines(answer) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasSuffix(line, "by 'stats socket command'") {
			return fmt.Errorf("commands %q: HAProxy answered %q", commands, line)
		}
	}
	return nil
}
