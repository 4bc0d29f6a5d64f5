// Package balance is the load-balancer node: it spreads HTTP requests over
// upstream hosts, keeps users on theirs, and leaves out hosts that are down.
//
// Two engines do the same. Balancer is ours, over the standard library's
// reverse proxy, and serves in this process. HAProxy describes the native
// server, for somebody else to start. Both take a Config, and the kit in
// balancetest holds both to the same behaviour.
//
// The order of calls is New, Run in a goroutine, Handler and Admin in servers
// of the caller's, Close when those have ended. All methods may be called
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
	"net"
	"net/http"
	"net/http/httputil"
	"regexp"
	"strconv"
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
	// Policy is how a host is picked: PolicyRoundRobin (default) or
	// PolicyLeastConn.
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
	// Log receives what becomes of hosts; default nowhere. Requests are counted,
	// not logged.
	Log *slog.Logger
}

// Policies of a Config.
const (
	PolicyRoundRobin = "round_robin" // each in turn
	PolicyLeastConn  = "least_conn"  // the one with the fewest requests in flight
)

// CookieName is the cookie that names the host a user stays on.
const CookieName = "lb"

// defaults fills what was left at zero.
func (c Config) defaults() Config {
	setDefault(&c.Policy, PolicyRoundRobin)
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
		return fmt.Errorf("policy %q: want %s or %s", c.Policy, PolicyRoundRobin, PolicyLeastConn)
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
	return validateUpstreams(c.Upstreams)
}

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
	}
	return nil
}

// Balancer is our own load balancer.
type Balancer struct {
	cfg          Config
	pool         *pool
	dispatcher   *dispatcher
	proxy        *httputil.ReverseProxy
	probe        func(ctx context.Context, address string) error // one health check
	retryAfter   string                                          // seconds, for a client that found no host
	finished     [1000]atomic.Uint64                             // requests that came to their end, by status
	redispatched atomic.Uint64
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
		cfg: cfg, pool: newPool(cfg), probe: newProbe(cfg).check,
		// By then each host has been looked at again.
		retryAfter: strconv.Itoa(int((cfg.HealthInterval + time.Second - 1) / time.Second)),
	}
	b.dispatcher = &dispatcher{pool: b.pool, sticky: cfg.Sticky, redispatched: &b.redispatched}
	b.proxy = &httputil.ReverseProxy{
		Rewrite:      rewrite,
		Transport:    b.dispatcher,
		BufferPool:   &bufferPool{},
		ErrorHandler: b.fail,
		ErrorLog:     slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug),
	}
	if err := cfg.Registry.Register(collector{b.Status}); err != nil {
		return nil, fmt.Errorf("balance: metrics: %w", err)
	}
	return b, nil
}

// Run checks the hosts until ctx is done, and returns nil.
func (b *Balancer) Run(ctx context.Context) error {
	var checks sync.WaitGroup
	for i, u := range b.pool.upstreams {
		// Spread over the interval, so that the hosts are not all asked at once.
		offset := b.cfg.HealthInterval * time.Duration(i) / time.Duration(len(b.pool.upstreams))
		checks.Go(func() { b.watch(ctx, u, offset) })
	}
	checks.Wait()
	return nil
}

// Handler is the public side: every request goes to a host.
func (b *Balancer) Handler() http.Handler { return http.HandlerFunc(b.serve) }

// Admin is the operators' side: /metrics, /healthz, /readyz and /status.
func (b *Balancer) Admin() http.Handler { return admin(b.cfg.Registry, b.Status) }

// Status says what the balancer knows of its hosts and has done so far.
func (b *Balancer) Status(context.Context) (Status, error) {
	status := Status{
		Node: b.cfg.Node, Engine: sut.OwnBalance, Policy: b.cfg.Policy, Sticky: b.cfg.Sticky,
		Responses: map[string]uint64{}, Redispatches: b.redispatched.Load(), Upstreams: b.pool.status(),
	}
	for code := range b.finished {
		if n := b.finished[code].Load(); n > 0 {
			status.Responses[strconv.Itoa(code)] = n
		}
	}
	return status, nil
}

// Close drops the connections that are idle. Call it when no request is being
// served any more.
func (b *Balancer) Close() {
	for _, u := range b.pool.upstreams {
		u.transport.CloseIdleConnections()
	}
}
