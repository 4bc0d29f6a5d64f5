package balance

import (
	"errors"
	"log/slog"
	"net/http"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// pool holds the hosts and picks one for each request. One mutex guards all its
// state, so that a pick and the count that it changes are one step. Otherwise
// concurrent picks would make the distribution inexact. At a few tens of thousands of
// requests per second the mutex is not contended.
type pool struct {
	cfg    Config
	policy policy
	timed  bool // the policy needs the latency of hosts
	log    *slog.Logger
	began  time.Time
	routes atomic.Pointer[routing] // replaced when the members change

	mu       sync.Mutex
	members  []*upstream
	draining []*upstream // removed members that still have requests in flight
}

// newPool makes a pool whose hosts count as healthy.
func newPool(cfg Config) *pool {
	p := &pool{
		cfg: cfg, policy: policies()[cfg.Policy], timed: cfg.Policy == sut.PolicyLeastResponseTime,
		log: cfg.Log, began: time.Now(),
	}
	for _, peer := range cfg.Peers {
		p.members = append(p.members, newUpstream(peer))
	}
	p.routes.Store(newRouting(cfg.Routes, p.members))
	return p
}

// group is the set of hosts that a policy picks from: the hosts of a route, or all
// hosts.
type group struct {
	members []*upstream

	// Guarded by the pool's mutex.
	candidates []candidate // state of members, in the same order
	last       int         // index of the previous pick
}

func newGroup(members []*upstream) *group {
	return &group{members: members, candidates: make([]candidate, len(members)), last: -1}
}

// pick holds the inputs for the choice of a host.
type pick struct {
	sticky string      // names of hosts, as the sticky cookie lists them
	client uint64      // hash of the client's address
	tried  []*upstream // hosts to skip
}

// acquire picks a host of the group and counts one more request, at layer 4 one more
// connection, in flight there. It prefers a host of the sticky cookie that is up, and
// asks the policy otherwise. It returns nil when no host is available. The caller
// must call release on the host.
func (p *pool) acquire(g *group, want pick) *upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	if want.sticky != "" {
		for _, u := range g.members {
			if u.up() && listsNode(want.sticky, u.node) && !slices.Contains(want.tried, u) {
				return u.take()
			}
		}
	}
	var now time.Duration
	if p.timed {
		now = time.Since(p.began)
	}
	for i, u := range g.members {
		c := &g.candidates[i]
		c.available = u.up() && !slices.Contains(want.tried, u)
		c.inFlight, c.weight, c.name = u.inFlight, u.weight, u.hash
		if p.timed {
			c.latency = u.latency.now(now)
		}
	}
	i := p.policy(g.candidates, turn{last: g.last, client: want.client})
	if i < 0 {
		return nil
	}
	g.last = i
	return g.members[i].take()
}

func (u *upstream) take() *upstream {
	u.inFlight++
	u.requests++
	return u
}

// unreachable releases a host after a failed connection attempt. A refused connection
// marks the host down at once: no process listens there, and until the next check
// every request to it would need another attempt.
func (p *pool) unreachable(u *upstream, err error, took time.Duration) {
	p.release(u, failed, err.Error(), took)
	if errors.Is(err, syscall.ECONNREFUSED) {
		p.mu.Lock()
		u.refusals++
		p.mu.Unlock()
		p.setHealth(u, err)
	}
}

// refusalsOf returns the count of refused connections. The caller reads it before a
// health check and passes it to checked.
func (p *pool) refusalsOf(u *upstream) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return u.refusals
}

// checked applies the result of a health check; refusals is the count from before the
// check. A good result is ignored when a connection was refused since then. It would
// mark a host up whose server answered the check and then died.
func (p *pool) checked(u *upstream, refusals uint64, err error) {
	if err == nil && refusals != p.refusalsOf(u) {
		return
	}
	p.setHealth(u, err)
}

// setHealth marks a host healthy (nil) or unhealthy.
func (p *pool) setHealth(u *upstream, err error) {
	p.change(u, func() {
		u.unhealthyCause = ""
		if err != nil {
			u.unhealthyCause = err.Error()
		}
	})
}

// change applies a change to the state of a host. It counts and logs the change when
// the host went up or down. It closes the layer 4 connections of a host that became
// unhealthy, but not of one that was ejected.
func (p *pool) change(u *upstream, apply func()) {
	p.mu.Lock()
	before := u.usable()
	apply()
	after, cause := u.usable(), u.cause()
	var broken []*tunnel
	switch {
	case before == after:
	case after:
		u.wentUp++
	default:
		u.wentDown++
		if u.unhealthyCause != "" {
			for t := range u.tunnels {
				broken = append(broken, t)
			}
		}
	}
	p.mu.Unlock()

	switch {
	case before == after:
	case after:
		p.log.Info("upstream is up", "upstream", u.node)
	default:
		p.log.Warn("upstream is down", "upstream", u.node, "cause", cause)
		u.transport.CloseIdleConnections()
	}
	for _, t := range broken {
		t.close()
	}
}

// attach registers a layer 4 connection with its host, and reports whether the host
// is still healthy.
func (p *pool) attach(u *upstream, t *tunnel) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	u.tunnels[t] = struct{}{}
	u.failures = 0
	return u.unhealthyCause == ""
}

// answered records the time to the first byte of a layer 4 connection.
func (p *pool) answered(u *upstream, took time.Duration) {
	if !p.timed {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	u.latency = u.latency.observe(time.Since(p.began), took, false)
}

// detach removes a layer 4 connection from its host.
func (p *pool) detach(u *upstream, t *tunnel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(u.tunnels, t)
}

// departure is a removed host.
type departure struct {
	node string
	over <-chan struct{} // closed when it has drained, or is a member again
}

// setMembers replaces the members and returns the hosts that were removed by this
// change, or by an earlier one and still drain. A host keeps its state when its name
// and address stay the same.
func (p *pool) setMembers(m sut.Upstreams) []departure {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := slices.Concat(p.members, p.draining)
	p.members = nil
	for _, peer := range m.Peers {
		i := slices.IndexFunc(known, func(u *upstream) bool { return u.node == peer.Node && u.address == peer.Address })
		if i < 0 {
			u := newUpstream(peer)
			u.unhealthyCause = "not checked yet"
			p.members = append(p.members, u)
			continue
		}
		u := known[i]
		known = slices.Delete(known, i, i+1)
		u.weight = weightOf(peer)
		if !u.member() {
			close(u.left)
			u.left = nil
		}
		p.members = append(p.members, u)
	}
	p.draining = known
	p.routes.Store(newRouting(m.Routes, p.members))
	var departures []departure
	for _, u := range known {
		if u.member() {
			u.left = make(chan struct{})
		}
		departures = append(departures, departure{u.node, u.left})
		if u.inFlight == 0 {
			p.finish(u)
		}
	}
	return departures
}

// finish ends the drain of a removed host that has nothing in flight. The caller
// holds the mutex.
func (p *pool) finish(u *upstream) {
	close(u.left)
	close(u.gone)
	if u.readmit != nil {
		u.readmit.Stop()
	}
	u.transport.CloseIdleConnections()
	p.draining = slices.DeleteFunc(slices.Clone(p.draining), func(d *upstream) bool { return d == u })
}

// unwatched returns the members without a goroutine that checks their health, and
// marks them as watched. The caller must start that goroutine.
func (p *pool) unwatched() []*upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []*upstream
	for _, u := range p.members {
		if !u.watched {
			u.watched = true
			list = append(list, u)
		}
	}
	return list
}

// close closes the idle connections and stops the timers. Call it when nothing is in
// flight.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range slices.Concat(p.members, p.draining) {
		if u.readmit != nil {
			u.readmit.Stop()
		}
		u.transport.CloseIdleConnections()
	}
}

// status returns a snapshot of the hosts: the members, then the draining hosts.
func (p *pool) status() []sut.UpstreamStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []sut.UpstreamStatus
	known := map[string]bool{}
	for _, u := range slices.Concat(p.members, p.draining) {
		if known[u.node] {
			continue // it drains, and another address has its name now
		}
		known[u.node] = true
		s := sut.UpstreamStatus{
			Node: u.node, Address: u.address, Up: u.up(), Ejected: u.ejected != "", Draining: !u.member(),
			InFlight: u.inFlight, Requests: u.requests, WentUp: u.wentUp, WentDown: u.wentDown, Ejections: u.ejections,
		}
		if !s.Up {
			s.Cause = u.cause()
		}
		list = append(list, s)
	}
	return list
}

// routing is the list of routes. The first match decides, and the last route matches
// all requests. It is immutable.
type routing []route

// route is a parsed sut.Route.
type route struct {
	method, path         string
	prefix               bool // path is a prefix
	header, headerValue  string
	cookie, cookieValue  string
	anyHeader, anyCookie bool   // any value matches
	hosts                string // names, separated by commas; "" = all hosts
	group                *group
}

// newRouting parses the routes and appends one that sends all requests to all hosts.
func newRouting(routes []sut.Route, members []*upstream) *routing {
	var r routing
	for _, declared := range routes {
		others := func(u *upstream) bool { return !slices.Contains(declared.To, u.node) }
		r = append(r, newRoute(declared, slices.DeleteFunc(slices.Clone(members), others)))
	}
	r = append(r, route{group: newGroup(members)})
	return &r
}

func newRoute(declared sut.Route, hosts []*upstream) route {
	r := route{method: declared.Method, hosts: strings.Join(declared.To, ", "), group: newGroup(hosts)}
	r.path, r.prefix = strings.CutSuffix(declared.Path, "*")
	name, value, found := strings.Cut(declared.Header, ":")
	r.header, r.headerValue, r.anyHeader = textproto.CanonicalMIMEHeaderKey(name), value, !found
	name, value, found = strings.Cut(declared.Cookie, ":")
	r.cookie, r.cookieValue, r.anyCookie = name, value, !found
	return r
}

// of returns the route of a request.
func (r routing) of(req *http.Request) *route {
	last := len(r) - 1
	for i := range last {
		if r[i].matches(req) {
			return &r[i]
		}
	}
	return &r[last]
}

// all returns the group of all hosts.
func (r routing) all() *group { return r[len(r)-1].group }

func (r *route) matches(req *http.Request) bool {
	switch {
	case r.method != "" && r.method != req.Method:
		return false
	case r.prefix && !strings.HasPrefix(req.URL.Path, r.path):
		return false
	case !r.prefix && r.path != "" && r.path != req.URL.Path:
		return false
	case r.header != "" && !r.matchesHeader(req.Header[r.header]):
		return false
	case r.cookie == "":
		return true
	}
	value, found := cookieOf(req.Header, r.cookie)
	return found && (r.anyCookie || value == r.cookieValue)
}

func (r *route) matchesHeader(values []string) bool {
	return r.anyHeader && len(values) > 0 || !r.anyHeader && slices.Contains(values, r.headerValue)
}

// noHostMessage returns the error for a client when no host of the route is up.
func (r *route) noHostMessage() string {
	if r.hosts == "" {
		return "no web host is up, try again later"
	}
	return "no web host is up for this route (" + r.hosts + "); other routes may work; try again later"
}
