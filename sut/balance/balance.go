// Package balance is the load-balancer node: it spreads HTTP requests, or at
// layer 4 connections, over upstream hosts, keeps users on theirs, and leaves
// out hosts that are down or fail what they are asked for.
//
// Two engines do the same. Balancer is ours, over the standard library's
// reverse proxy, and serves in this process. HAProxy describes the native
// server, for somebody else to start. Both take a Config, and the kit in
// balancetest holds both to the same behaviour.
//
// The order of calls is New, Serve in a goroutine, Admin in a server of the
// caller's, SetMembership at any time, Shutdown. All methods may be called
// concurrently. State belongs to the instance: two balancers in one process
// share nothing.
//
// Neither engine sends a request twice: one that could not be sent, because no
// connection was made or the connection turned out dead before the first byte,
// goes to another host; one that was sent and not answered has failed, whatever
// its method. Neither caches, compresses, queues or switches protocols
// (WebSocket), and neither judges paths, queries or bodies.
//
// Times are time.Duration; counts are since the start of the instance.
package balance

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
)

// Config says what to balance, and how. The zero value of a field means its
// default, where one is given.
type Config struct {
	// Node is the balancer's own name.
	Node string
	// Upstreams are the hosts that requests are spread over; at least one.
	Upstreams []sut.Peer
	// Routes say which hosts get which requests; none = any host any request.
	// Layer 7 only.
	Routes []sut.Route
	// Layer is Layer7 (default), which balances requests, or Layer4, which
	// balances connections and sees addresses only.
	Layer string
	// Policy is how a host is picked; default PolicyRoundRobin.
	Policy string
	// Sticky keeps a user on the host that answered first, by the cookie
	// CookieName.
	Sticky bool
	// HealthInterval is the time between two checks of a host; default 1 s.
	// One failed check takes it out, one good check brings it back.
	HealthInterval time.Duration
	// HealthTimeout bounds a check; default the longer of HealthInterval and 1 s.
	HealthTimeout time.Duration
	// HealthPath is what a check asks for; default "/healthz". A status of 200
	// to 399 is good.
	HealthPath string
	// EjectAfter is the number of failures in a row, of requests or connections,
	// that take a host out although its checks are good; 0 = never.
	EjectAfter int
	// LogRequests says which requests are logged, with their ids: LogFailed
	// (default), LogAll or LogNone.
	LogRequests string
	// ConnectTimeout bounds connecting to a host; default 3 s.
	ConnectTimeout time.Duration
	// ResponseTimeout bounds the wait for a host's answer, from the end of the
	// request to the headers; default 60 s.
	ResponseTimeout time.Duration
	// MaxIdlePerUpstream bounds the connections to one host that are kept while
	// they are idle; default 1024. Below the concurrency, each request above it
	// costs a new connection.
	MaxIdlePerUpstream int
	// Registry receives the metrics, and Admin serves it; default a new one.
	Registry *prometheus.Registry
	// Log receives what becomes of hosts, and the requests that LogRequests says;
	// default nowhere.
	Log *slog.Logger
}

// Policies of a Config.
const (
	PolicyRoundRobin         = "round_robin"          // each in turn
	PolicyWeightedRoundRobin = "weighted_round_robin" // each in turn, in proportion to its weight
	PolicyIPHash             = "ip_hash"              // by the client's address, always the same
	PolicyLeastConn          = "least_conn"           // the one with the fewest requests in flight
	PolicyLeastResponseTime  = "least_response_time"  // the one that should answer first
)

// Layers of a Config.
const (
	Layer7 = "l7"
	Layer4 = "l4"
)

// What of a Config's LogRequests is logged.
const (
	LogFailed = "failed"
	LogAll    = "all"
	LogNone   = "none"
)

// CookieName is the cookie that names the host a user stays on.
const CookieName = "lb"

// defaults fills what was left at zero.
func (c Config) defaults() Config {
	setDefault(&c.Layer, Layer7)
	setDefault(&c.Policy, PolicyRoundRobin)
	setDefault(&c.LogRequests, LogFailed)
	setDefault(&c.HealthInterval, time.Second)
	setDefault(&c.HealthTimeout, max(c.HealthInterval, time.Second))
	setDefault(&c.HealthPath, "/healthz")
	setDefault(&c.ConnectTimeout, 3*time.Second)
	setDefault(&c.ResponseTimeout, time.Minute)
	setDefault(&c.MaxIdlePerUpstream, 1024)
	if c.Registry == nil {
		c.Registry = prometheus.NewRegistry()
	}
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	return c
}

// setDefault gives a value to a field that has none.
func setDefault[T comparable](field *T, value T) {
	var zero T
	if *field == zero {
		*field = value
	}
}

// What may stand in a configuration file, a cookie and a label without quotes.
var (
	nodeName   = regexp.MustCompile(`^[A-Za-z0-9_.-]+$`)
	healthPath = regexp.MustCompile(`^/[A-Za-z0-9_./~-]*$`)
)

// validate says what is wrong with a configuration that has its defaults.
func (c Config) validate() error {
	if !nodeName.MatchString(c.Node) {
		return fmt.Errorf("node name %q: want letters, digits, '_', '.' and '-'", c.Node)
	}
	if policies()[c.Policy] == nil {
		return fmt.Errorf("policy %q: want one of %s", c.Policy, strings.Join(slices.Sorted(maps.Keys(policies())), ", "))
	}
	if err := c.validateLayer(); err != nil {
		return err
	}
	if !slices.Contains([]string{LogFailed, LogAll, LogNone}, c.LogRequests) {
		return fmt.Errorf("log requests %q: want %s, %s or %s", c.LogRequests, LogFailed, LogAll, LogNone)
	}
	if c.EjectAfter < 0 {
		return fmt.Errorf("eject after %d: want a number of failures, or 0 for never", c.EjectAfter)
	}
	if !healthPath.MatchString(c.HealthPath) {
		return fmt.Errorf("health path %q: want a plain path, such as /healthz", c.HealthPath)
	}
	for _, bound := range []struct {
		name  string
		value time.Duration
	}{
		{"health interval", c.HealthInterval},
		{"health timeout", c.HealthTimeout},
		{"connect timeout", c.ConnectTimeout},
		{"response timeout", c.ResponseTimeout},
	} {
		if bound.value < time.Millisecond {
			return fmt.Errorf("%s %v: want at least 1ms", bound.name, bound.value)
		}
	}
	if c.MaxIdlePerUpstream < 1 {
		return fmt.Errorf("max idle per upstream %d: want at least 1", c.MaxIdlePerUpstream)
	}
	if err := validateUpstreams(c.Upstreams); err != nil {
		return err
	}
	return validateRoutes(c.Routes, c.Upstreams)
}

// validateLayer says what is wrong with the layer and what it cannot do.
func (c Config) validateLayer() error {
	switch {
	case c.Layer != Layer7 && c.Layer != Layer4:
		return fmt.Errorf("layer %q: want %s or %s", c.Layer, Layer7, Layer4)
	case c.Layer == Layer4 && c.Sticky:
		return errors.New("sticky needs layer l7: a balancer of connections sees no cookies")
	case c.Layer == Layer4 && len(c.Routes) > 0:
		return errors.New("routes need layer l7: a balancer of connections sees no requests")
	}
	return nil
}

// validateRoutes says what is wrong with routes to those hosts.
func validateRoutes(routes []sut.Route, upstreams []sut.Peer) error {
	for i, route := range routes {
		if err := route.Validate(); err != nil {
			return fmt.Errorf("route %d: %w", i+1, err)
		}
		for _, node := range route.To {
			if !slices.ContainsFunc(upstreams, func(p sut.Peer) bool { return p.Node == node }) {
				return fmt.Errorf("route %d: %s is none of the upstreams", i+1, node)
			}
		}
	}
	return nil
}

// maxWeight bounds weights, so that their sum stays exact enough.
const maxWeight = 1_000_000

// validateUpstreams says what is wrong with the list of hosts.
func validateUpstreams(upstreams []sut.Peer) error {
	if len(upstreams) == 0 {
		return errors.New("no upstreams: a balancer needs at least one host")
	}
	known := map[string]bool{}
	for _, peer := range upstreams {
		if !nodeName.MatchString(peer.Node) {
			return fmt.Errorf("upstream name %q: want letters, digits, '_', '.' and '-'", peer.Node)
		}
		if known[peer.Node] {
			return fmt.Errorf("upstream %s is listed twice", peer.Node)
		}
		known[peer.Node] = true
		host, port, err := net.SplitHostPort(peer.Address)
		if err != nil {
			return fmt.Errorf("upstream %s: %w", peer.Node, err)
		}
		number, err := strconv.Atoi(port)
		if net.ParseIP(host) == nil || err != nil || number < 1 || number > 65535 {
			return fmt.Errorf("upstream %s: address %q: want IP:port", peer.Node, peer.Address)
		}
		if !(peer.Weight >= 0 && peer.Weight <= maxWeight) {
			return fmt.Errorf("upstream %s: weight %v: want a number from 0 to %d", peer.Node, peer.Weight, maxWeight)
		}
	}
	return nil
}

// Balancer is our own load balancer.
type Balancer struct {
	cfg          Config
	pool         *pool
	probe        func(ctx context.Context, address string) error // one health check
	joined       chan struct{}                                   // receives when there may be new members
	redispatched atomic.Uint64

	// Layer 7.
	proxy      httputil.ReverseProxy // each request has a copy
	server     *http.Server
	ids        *sut.RequestIDs
	hashes     bool                // the policy wants to know the client's address
	identity   []string            // a Transfer-Encoding, never changed
	retryAfter string              // seconds, for a client that found no host
	finished   [1000]atomic.Uint64 // requests that came to their end, by status

	forwarder *forwarder // layer 4

	checks   sync.WaitGroup
	shutting sync.Once
	ended    chan struct{} // closed when the checks are to end
}

// statusClientGone counts requests whose client left before the answer. It is
// never sent; the number is nginx's.
const statusClientGone = 499

// New makes a balancer and puts its metrics into the registry. Hosts count as
// up until a check or a refused connection says otherwise.
func New(cfg Config) (*Balancer, error) {
	cfg = cfg.defaults()
	if err := cfg.validate(); err != nil {
		return nil, fmt.Errorf("balance: %w", err)
	}
	b := &Balancer{
		cfg: cfg, pool: newPool(cfg), probe: newProbe(cfg).check, joined: make(chan struct{}, 1), ended: make(chan struct{}),
		hashes: cfg.Policy == PolicyIPHash, identity: []string{"identity"},
		// By then each host has been looked at again.
		retryAfter: strconv.Itoa(int((cfg.HealthInterval + time.Second - 1) / time.Second)),
	}
	b.ids = sut.NewRequestIDs()
	// What others of the standard library log would not be a line of JSON.
	quiet := slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug)
	b.proxy = httputil.ReverseProxy{Rewrite: rewrite, BufferPool: &bufferPool{}, ErrorHandler: b.fail, ErrorLog: quiet}
	b.server = &http.Server{Handler: b.handler(), ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute, ErrorLog: quiet}
	if cfg.Layer == Layer4 {
		b.forwarder = &forwarder{
			pool: b.pool, dialer: net.Dialer{Timeout: cfg.ConnectTimeout}, hashes: b.hashes,
			redispatched: &b.redispatched, tunnels: map[*tunnel]struct{}{},
		}
	}
	if err := cfg.Registry.Register(collector{b.Status}); err != nil {
		return nil, fmt.Errorf("balance: metrics: %w", err)
	}
	return b, nil
}

// Serve serves clients on a listener, at the configured layer, and checks the
// hosts, until Shutdown: it returns nil then, and what went wrong otherwise. Call
// it once.
func (b *Balancer) Serve(listener net.Listener) error {
	ctx, cancel := context.WithCancel(context.Background())
	b.checks.Go(func() {
		<-b.ended
		cancel()
	})
	b.checks.Go(func() { b.run(ctx) })
	serve := b.server.Serve
	if b.forwarder != nil {
		serve = b.forwarder.serve
	}
	if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown stops accepting clients, lets requests in flight finish, at layer 4
// connections, breaks those that are left when ctx ends, and ends the health
// checks. Then nothing of the balancer is left. It returns the error of ctx when
// anything was broken.
func (b *Balancer) Shutdown(ctx context.Context) error {
	var err error
	b.shutting.Do(func() {
		if b.forwarder != nil {
			err = b.forwarder.shutdown(ctx)
		} else if err = b.server.Shutdown(ctx); err != nil {
			err = errors.Join(err, b.server.Close())
		}
		close(b.ended)
		b.checks.Wait()
		b.pool.close()
	})
	return err
}

// SetMembership changes the hosts while the balancer serves, as sut.Membership
// says. It returns when the hosts that are members no more have finished what
// they had; when they do not before ctx ends they go on, and it returns ctx's
// error. A connection of layer 4 may be open and idle for as long as its client
// likes, and nobody who sees only bytes can tell when to close it.
func (b *Balancer) SetMembership(ctx context.Context, m sut.Membership) error {
	next := b.cfg
	next.Upstreams, next.Routes = m.Upstreams, m.Routes
	if err := next.validate(); err != nil {
		return fmt.Errorf("%w: %w", errMembership, err)
	}
	departures := b.pool.become(m)
	select {
	case b.joined <- struct{}{}:
	default: // it is to look already
	}
	for _, d := range departures {
		select {
		case <-d.over:
		case <-ctx.Done():
			return fmt.Errorf("balance: %s has not finished: %w", d.node, ctx.Err())
		}
	}
	return nil
}

// run checks the hosts until ctx is done.
func (b *Balancer) run(ctx context.Context) {
	var checks sync.WaitGroup
	defer checks.Wait()
	first := b.pool.unwatched()
	for i, u := range first {
		// Spread over the interval, so that the hosts are not all asked at once.
		offset := b.cfg.HealthInterval * time.Duration(i) / time.Duration(len(first))
		checks.Go(func() { b.watch(ctx, u, offset) })
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.joined:
			// A new host waits for its first check.
			for _, u := range b.pool.unwatched() {
				checks.Go(func() { b.watch(ctx, u, 0) })
			}
		}
	}
}

// handler is the public side at layer 7: every request goes to a host.
func (b *Balancer) handler() http.Handler { return http.HandlerFunc(b.serve) }

// Admin is the operators' side: /metrics, /healthz, /readyz and /status, and PUT
// of sut.MembershipPath.
func (b *Balancer) Admin() http.Handler {
	mux := admin(b.cfg.Registry, b.Status)
	mux.Handle("PUT "+sut.MembershipPath, membershipHandler(b.SetMembership))
	return mux
}

// Status says what the balancer knows of its hosts and has done so far.
func (b *Balancer) Status(context.Context) (Status, error) {
	status := Status{
		Node: b.cfg.Node, Engine: sut.OwnBalance, Layer: b.cfg.Layer, Policy: b.cfg.Policy, Sticky: b.cfg.Sticky,
		Redispatches: b.redispatched.Load(), Upstreams: b.pool.status(),
	}
	if b.forwarder != nil {
		status.Connections = b.forwarder.status()
		return status, nil
	}
	status.Responses = map[string]uint64{}
	for code := range b.finished {
		if n := b.finished[code].Load(); n > 0 {
			status.Responses[strconv.Itoa(code)] = n
		}
	}
	return status, nil
}
