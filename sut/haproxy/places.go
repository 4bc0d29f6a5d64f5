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

// spares is how many hosts a running server can get that it was not started
// with.
const spares = 16

// backend is the hosts of one route, with a place for every host that there is or
// may come.
type backend struct {
	name, cookie string
	route        sut.Route
	places       []place
}

// place is a server of a backend in the words of HAProxy.
type place struct {
	name, address string
	weight        int
	used          bool // by the backend's route
	draining      bool // at layer 4: not used any more, but connections may lead there
}

// places knows which host is in which place. Names of places never change: those
// of the first hosts are the hosts' own.
type places struct {
	cfg sut.Balancing

	mu      sync.Mutex
	scale   float64 // of weights
	members sut.Upstreams
	place   map[string]string // node -> place, also of nodes that are no members any more
	peers   map[string]sut.Peer
	nodes   []string // in the order in which they came
	reserve []string // places that nobody had yet
	// The rest is by "backend/place".
	told   map[string]place  // what the running server was told last
	joined map[string]uint64 // how often a host joined, and so began as down
}

func newPlaces(cfg sut.Balancing) *places {
	p := &places{cfg: cfg, members: cfg.Upstreams}
	p.reset()
	return p
}

// reset gives the members of this moment places of their own name, as a server
// does that is started with them, and returns the backends.
func (p *places) reset() []backend {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.place, p.peers, p.nodes, p.reserve = map[string]string{}, map[string]sut.Peer{}, nil, nil
	p.told, p.joined = map[string]place{}, map[string]uint64{}
	for _, peer := range p.members.Peers {
		p.place[peer.Node], p.peers[peer.Node] = peer.Node, peer
		p.nodes = append(p.nodes, peer.Node)
	}
	p.rescale()
	for i := range spares {
		p.reserve = append(p.reserve, fmt.Sprintf("spare-%d", i+1))
	}
	backends := p.backends()
	for _, b := range backends {
		for _, now := range b.places {
			p.told[b.name+"/"+now.name] = now
		}
	}
	return backends
}

// rescale has the members' weights fit into the server's, which are whole numbers
// up to 256.
func (p *places) rescale() {
	most := 1.0
	for _, peer := range p.members.Peers {
		most = max(most, peer.Weight)
	}
	p.scale = min(10, 256/most)
}

// backends lists the backends with all places; the caller holds the mutex.
func (p *places) backends() []backend {
	var all []backend
	web := backend{name: "web", cookie: sut.StickyCookie}
	for i, route := range p.members.Routes {
		b := backend{name: fmt.Sprintf("route-%d", i+1), cookie: fmt.Sprintf("%s-%d", sut.StickyCookie, i+1), route: route}
		if b.conditions() == "" {
			web.route = route
			break // nothing comes further
		}
		all = append(all, b)
	}
	all = append(all, web)
	for i := range all {
		b := &all[i]
		for _, node := range p.nodes {
			b.places = append(b.places, place{
				name: p.place[node], address: p.peers[node].Address, weight: p.weight(p.peers[node]),
				used: p.member(node) && (b.route.To == nil || slices.Contains(b.route.To, node)),
			})
		}
		for _, name := range p.reserve {
			b.places = append(b.places, place{name: name, address: nowhere, weight: 1})
		}
	}
	return all
}

// nowhere is the address of a place that nobody had yet: the discard service,
// which nobody asks.
const nowhere = "127.0.0.1:9"

// hashWeight is every host's weight under sut.PolicyIPHash. The server gives a host 16
// points of the circle for each, and with few points shares are uneven.
const hashWeight = 16

// weight is a host's weight as the server takes it.
func (p *places) weight(peer sut.Peer) int {
	switch p.cfg.Policy {
	case sut.PolicyWeightedRoundRobin:
	case sut.PolicyIPHash:
		return hashWeight
	default:
		return 1
	}
	return min(max(int(math.Round(cmp.Or(peer.Weight, 1)*p.scale)), 1), 256)
}

// member reports whether a host is one; the caller holds the mutex.
func (p *places) member(node string) bool {
	return slices.ContainsFunc(p.members.Peers, func(peer sut.Peer) bool { return peer.Node == node })
}

// holder says which host is in a place; "" for none. The caller holds the mutex.
func (p *places) holder(name string) string {
	i := slices.IndexFunc(p.nodes, func(node string) bool { return p.place[node] == name })
	if i < 0 {
		return ""
	}
	return p.nodes[i]
}

// step is what a server of a backend becomes, and how.
type step struct {
	server   string // "backend/place"
	now      place
	joins    bool
	commands []string
}

// change makes hosts those of this moment and returns the steps that make
// it the running server's, and the places of the hosts that left. It is told
// which places are well in any backend.
func (p *places) change(m sut.Upstreams, well map[string]bool) (steps []step, left []string, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.possible(m); err != nil {
		return nil, nil, err
	}
	p.members = m
	p.rescale()
	var others []step
	for _, peer := range m.Peers {
		if _, known := p.place[peer.Node]; !known {
			p.place[peer.Node], p.reserve = p.reserve[0], p.reserve[1:]
			p.nodes = append(p.nodes, peer.Node)
		}
		p.peers[peer.Node] = peer
	}
	for _, b := range p.backends() {
		for _, now := range b.places {
			server := b.name + "/" + now.name
			switch s := p.step(server, p.told[server], now, well[now.name]); {
			case len(s.commands) == 0:
			case now.used:
				steps = append(steps, s)
			default:
				others = append(others, s)
			}
		}
	}
	for _, node := range p.nodes {
		if !p.member(node) {
			left = append(left, p.place[node])
		}
	}
	// No backend loses its last host before it has the next.
	return append(steps, others...), left, nil
}

// done notes that the running server took a step.
func (p *places) done(s step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.told[s.server] = s.now
	if s.joins {
		p.joined[s.server]++
	}
}

// possible says why a running server cannot get other hosts.
func (p *places) possible(m sut.Upstreams) error {
	next := p.cfg
	next.Upstreams = m
	if err := next.Validate(); err != nil {
		return err
	}
	if !slices.Equal(conditionsOf(m.Routes), conditionsOf(p.members.Routes)) {
		return errors.New("routes: HAProxy takes other conditions only when it is started")
	}
	fresh := 0
	for _, peer := range m.Peers {
		if _, known := p.place[peer.Node]; !known {
			fresh++
		}
	}
	if fresh > len(p.reserve) {
		return fmt.Errorf("%d new hosts: HAProxy has room for %d until it is started again", fresh, len(p.reserve))
	}
	return nil
}

// conditionsOf lists the conditions of those routes that have a backend of their
// own.
func conditionsOf(routes []sut.Route) (all []string) {
	for _, r := range routes {
		conditions := backend{route: r}.conditions()
		if conditions == "" {
			break // the rest of the requests, in the backend that is always there
		}
		all = append(all, conditions)
	}
	return all
}

// step makes one server of a backend what it is to be. Source: HAProxy,
// Management Guide, section 9.3, Unix socket commands.
func (p *places) step(server string, was, now place, well bool) step {
	s := step{server: server, now: now}
	set := func(format string, args ...any) {
		s.commands = append(s.commands, "set server "+server+" "+fmt.Sprintf(format, args...))
	}
	// Its health is known from another backend, or from here when it is draining
	// with its checks going on.
	known := was.address == now.address && (was.used || was.draining || well)
	if now.used && was.weight != now.weight {
		set("weight %d", now.weight)
	}
	switch {
	case now.used && !known:
		s.joins = true
		// The first good check brings it up. In maintenance it could not be down,
		// and in use it would be up until then.
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
		set("state maint") // users whose cookie names it move, too
	default:
		s.now.draining = was.draining
	}
	return s
}

// rest has hosts of layer 4 that left and have finished go into maintenance:
// nobody has to know any more whether they are well.
func (p *places) rest() (steps []step) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for server, was := range p.told {
		if was.draining && !was.used {
			was.draining = false
			steps = append(steps, step{server: server, now: was, commands: []string{"set server " + server + " state maint"}})
		}
	}
	return steps
}

// drainPoll is how often the server is asked whether hosts that left are done.
const drainPoll = 5 * time.Millisecond

// SetUpstreams makes other hosts the members while the server runs, and returns when
// those that left have finished what they had, or with ctx's error. Routes keep their
// conditions. An error that wraps sut.ErrWiring means that nothing has changed; after
// another one the same hosts can be asked for again.
func (h *Server) SetUpstreams(ctx context.Context, m sut.Upstreams) error {
	left, err := h.become(ctx, m)
	if err == nil {
		err = h.awaitIdle(ctx, left)
	}
	if err == nil {
		err = h.retire(ctx, left)
	}
	if err != nil {
		return fmt.Errorf("haproxy: %w", err)
	}
	return nil
}

// awaitIdle waits until the hosts in those places have finished what they had.
func (h *Server) awaitIdle(ctx context.Context, left []string) error {
	for {
		rows, err := h.rows(ctx)
		if err != nil || !slices.ContainsFunc(rows, func(row map[string]string) bool {
			return slices.Contains(left, row["svname"]) && row["scur"] != "0"
		}) {
			return err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("hosts that left have not finished: %w", ctx.Err())
		case <-time.After(drainPoll):
		}
	}
}

// become tells the server of its hosts and returns the places of the hosts
// that left.
func (h *Server) become(ctx context.Context, m sut.Upstreams) (left []string, err error) {
	h.telling.Lock()
	defer h.telling.Unlock()
	rows, err := h.rows(ctx)
	if err != nil {
		return nil, err
	}
	well := map[string]bool{}
	for _, row := range rows {
		well[row["svname"]] = well[row["svname"]] || strings.HasPrefix(row["status"], "UP")
	}
	steps, left, err := h.places.change(m, well)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", sut.ErrWiring, err)
	}
	return left, h.tell(ctx, steps)
}

// retire tells the server that hosts which left are not needed any more.
func (h *Server) retire(ctx context.Context, left []string) error {
	h.telling.Lock()
	defer h.telling.Unlock()
	var steps []step
	for _, s := range h.places.rest() {
		// Others may have left since, and have not finished.
		if slices.Contains(left, s.now.name) {
			steps = append(steps, s)
		}
	}
	return h.tell(ctx, steps)
}

// tell has the running server take steps. The commands of one go in one line,
// so that a host has no time to be what it is only in between.
func (h *Server) tell(ctx context.Context, steps []step) error {
	for _, s := range steps {
		answer, err := h.ask(ctx, strings.Join(s.commands, "; "))
		if err != nil {
			return err
		}
		// Silence is consent, but a new address is always confirmed.
		for line := range strings.Lines(answer) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasSuffix(line, "by 'stats socket command'") {
				return fmt.Errorf("%s: the server said %q", s.commands, line)
			}
		}
		h.places.done(s)
	}
	return nil
}
