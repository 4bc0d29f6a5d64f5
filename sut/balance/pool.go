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

// pool holds the hosts and hands them out. One mutex guards it all: a pick and
// the count that it changes are one step, so that the distribution is exact,
// and at a few tens of thousands of requests a second nobody waits for it.
type pool struct {
	cfg    Config
	policy policy
	timed  bool // the policy wants to know how long hosts take
	log    *slog.Logger
	began  time.Time
	routes atomic.Pointer[routing] // replaced with the members

	mu      sync.Mutex
	members []*upstream
	leaving []*upstream // members no more, and not finished
}

// newPool makes a pool whose hosts count as well.
func newPool(cfg Config) *pool {
	p := &pool{
		cfg: cfg, policy: policies()[cfg.Policy], timed: cfg.Policy == sut.PolicyLeastResponseTime,
		log: cfg.Log, began: time.Now(),
	}
	for _, peer := range cfg.Peers {
		u := newUpstream(cfg, peer)
		u.well = true
		p.members = append(p.members, u)
	}
	p.routes.Store(newRouting(cfg.Routes, p.members))
	return p
}

// group is the hosts that a policy picks from: those of a route, or all.
type group struct {
	members []*upstream

	// Guarded by the pool's mutex.
	candidates []candidate // of the members, in their order
	last       int         // what the policy picked before
}

func newGroup(members []*upstream) *group {
	return &group{members: members, candidates: make([]candidate, len(members)), last: -1}
}

// errand is what a host is wanted for.
type errand struct {
	held   string      // names of hosts, as a cookie lists them: the first that is up is taken
	client uint64      // hash of the client's address
	tried  []*upstream // left out
}

// acquire picks a host of the group and counts the errand as in flight there:
// the one that is held when it is up, else what the policy says. It returns nil
// when none is left; what it returns goes back with release.
func (p *pool) acquire(g *group, e errand) *upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e.held != "" {
		for _, u := range g.members {
			if u.up() && holds(e.held, u.node) && !slices.Contains(e.tried, u) {
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
		c.available, c.inFlight, c.weight, c.name = u.up() && !slices.Contains(e.tried, u), u.inFlight, u.weight, u.hash
		if p.timed {
			c.latency = u.latency.now(now)
		}
	}
	i := p.policy(g.candidates, turn{last: g.last, client: e.client})
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

// unreached gives a host back that no connection could be made to. One that refused it
// is taken out: nobody listens there, and to wait for the next check would only cost
// other requests a detour.
func (p *pool) unreached(u *upstream, err error, took time.Duration) {
	p.release(u, failed, err.Error(), took)
	if errors.Is(err, syscall.ECONNREFUSED) {
		p.mu.Lock()
		u.verdicts++
		p.mu.Unlock()
		p.set(u, err)
	}
}

// verdictsOf is taken before a check and handed to checked after it.
func (p *pool) verdictsOf(u *upstream) uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return u.verdicts
}

// checked applies the result of a health check. A good one is void when a
// request learnt better meanwhile: the check may have been answered by a server
// that died right after.
func (p *pool) checked(u *upstream, verdicts uint64, err error) {
	if err == nil && verdicts != p.verdictsOf(u) {
		return
	}
	p.set(u, err)
}

// set makes a host well (nil) or not.
func (p *pool) set(u *upstream, err error) {
	p.change(u, func() {
		u.well, u.unwell = err == nil, ""
		if err != nil {
			u.unwell = err.Error()
		}
	})
}

// change changes what is known of a host. When it goes up or down by that, it is
// counted and logged, and the connections of a host that is not well are
// dropped.
func (p *pool) change(u *upstream, apply func()) {
	p.mu.Lock()
	before := u.fit()
	apply()
	after, cause := u.fit(), u.cause()
	var broken []*tunnel
	switch {
	case before == after:
	case after:
		u.wentUp++
	default:
		u.wentDown++
		if !u.well {
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

// attach notes a connection that was made to a host, and reports whether the
// host is well still. answered says how long it took to the first byte; detach
// forgets it.
func (p *pool) attach(u *upstream, t *tunnel) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	u.tunnels[t] = struct{}{}
	u.failures = 0
	return u.well
}

func (p *pool) answered(u *upstream, took time.Duration) {
	if !p.timed {
		return
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	u.latency = u.latency.observe(time.Since(p.began), took, false)
}

func (p *pool) detach(u *upstream, t *tunnel) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(u.tunnels, t)
}

// departure is a host that is no member any more; over is closed when it has
// finished what it had, or is a member again.
type departure struct {
	node string
	over <-chan struct{}
}

// become makes other hosts the members and returns those that
// have something to finish, from this change or an earlier one. A host is the
// same when its name and address are.
func (p *pool) become(m sut.Upstreams) []departure {
	p.mu.Lock()
	defer p.mu.Unlock()
	known := slices.Concat(p.members, p.leaving)
	p.members = nil
	for _, peer := range m.Peers {
		i := slices.IndexFunc(known, func(u *upstream) bool { return u.node == peer.Node && u.address == peer.Address })
		if i < 0 {
			u := newUpstream(p.cfg, peer)
			u.unwell = "not checked yet"
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
	p.leaving = known
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

// finish says that a host that is no member has nothing in flight. The mutex is
// held.
func (p *pool) finish(u *upstream) {
	close(u.left)
	close(u.gone)
	if u.readmit != nil {
		u.readmit.Stop()
	}
	u.transport.CloseIdleConnections()
	p.leaving = slices.DeleteFunc(slices.Clone(p.leaving), func(l *upstream) bool { return l == u })
}

// unwatched returns the members whose health nobody checks, and counts them as
// checked.
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

// close drops what is idle, when nothing is in flight any more.
func (p *pool) close() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, u := range slices.Concat(p.members, p.leaving) {
		if u.readmit != nil {
			u.readmit.Stop()
		}
		u.transport.CloseIdleConnections()
	}
}

// status describes the hosts at one moment: the members, and those that leave.
func (p *pool) status() []sut.UpstreamStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	var list []sut.UpstreamStatus
	known := map[string]bool{}
	for _, u := range slices.Concat(p.members, p.leaving) {
		if known[u.node] {
			continue // left under this name, while another address has it
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

// routing says which hosts get which requests: the first route that matches counts, and
// the last matches all. It never changes.
type routing []route

// route is a sut.Route, taken apart.
type route struct {
	method, path         string
	prefix               bool // path is a beginning
	header, headerValue  string
	cookie, cookieValue  string
	anyHeader, anyCookie bool // it must be there, whatever its value
	hosts                string
	group                *group
}

// newRouting adds to the routes one that matches all requests, to all hosts.
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

// without says what a client is told when none of the route's hosts is up.
func (r *route) without() string {
	if r.hosts == "" {
		return "no web host is up, try again later"
	}
	return "no web host is up for this part of the service (" + r.hosts + "), the rest goes on; try again later"
}
