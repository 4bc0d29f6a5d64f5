package balance

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// upstream is one host.
type upstream struct {
	index     int
	peer      sut.Peer
	transport *http.Transport // connections to this host alone

	// Guarded by the pool's mutex.
	up       bool
	cause    string // why it is down
	inFlight int
	requests uint64 // attempts to send one to it
	wentUp   uint64
	wentDown uint64
	// verdicts counts what requests found out about the host. A check that
	// began before the last of them knows less.
	verdicts uint64
}

// pool holds the hosts and hands them out. One mutex guards it all: a pick and
// the count that it changes are one step, so that the distribution is exact,
// and at a few tens of thousands of requests a second nobody waits for it.
type pool struct {
	policy    policy
	log       *slog.Logger
	upstreams []*upstream // never changed

	mu         sync.Mutex
	last       int         // what the policy picked before
	candidates []candidate // scratch
}

func newPool(cfg Config) *pool {
	p := &pool{policy: policies()[cfg.Policy], log: cfg.Log, last: -1, candidates: make([]candidate, len(cfg.Upstreams))}
	for i, peer := range cfg.Upstreams {
		p.upstreams = append(p.upstreams, &upstream{index: i, peer: peer, transport: newTransport(cfg), up: true})
	}
	return p
}

// newTransport makes the connections to one host.
func newTransport(cfg Config) *http.Transport {
	dialer := net.Dialer{Timeout: cfg.ConnectTimeout}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return &countedConn{Conn: conn}, nil
		},
		MaxIdleConnsPerHost: cfg.MaxIdlePerUpstream,
		// Shorter than the host keeps them, or requests would meet connections
		// that the host is about to close.
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: cfg.ResponseTimeout,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // bodies pass as they are
	}
}

// countedConn counts the writes that were begun on a connection. When there was
// none for a request, no byte of it can have left.
type countedConn struct {
	net.Conn
	writes atomic.Int64
}

func (c *countedConn) Write(p []byte) (int, error) {
	// Before the write, not after: a write that is under way counts as sent.
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// acquire picks a host for a request and counts it as in flight there: the one
// of that name when it is up, else what the policy says. Hosts that were tried
// for this request are left out. It returns nil when none is left; what it
// returns goes back with release.
func (p *pool) acquire(name string, tried []*upstream) *upstream {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, u := range p.upstreams {
		available := u.up && !slices.Contains(tried, u)
		if available && u.peer.Node == name {
			return u.take()
		}
		p.candidates[i] = candidate{available: available, inFlight: u.inFlight}
	}
	i := p.policy(p.candidates, p.last)
	if i < 0 {
		return nil
	}
	p.last = i
	return p.upstreams[i].take()
}

func (u *upstream) take() *upstream {
	u.inFlight++
	u.requests++
	return u
}

// release says that a request to the host has come to its end.
func (p *pool) release(u *upstream) {
	p.mu.Lock()
	defer p.mu.Unlock()
	u.inFlight--
}

// refused takes a host out that refused a connection: nobody listens there, and
// to wait for the next check would only cost other requests a detour.
func (p *pool) refused(u *upstream, err error) {
	p.mu.Lock()
	u.verdicts++
	p.mu.Unlock()
	p.set(u, err)
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

// set makes a host up (nil) or down. When that is news, it is counted and
// logged, and the connections of a host that went down are dropped.
func (p *pool) set(u *upstream, err error) {
	p.mu.Lock()
	changed := u.up != (err == nil)
	u.up = err == nil
	switch {
	case err != nil:
		u.cause = err.Error()
	default:
		u.cause = ""
	}
	switch {
	case changed && u.up:
		u.wentUp++
	case changed:
		u.wentDown++
	}
	p.mu.Unlock()

	switch {
	case changed && err == nil:
		p.log.Info("upstream is up", "upstream", u.peer.Node)
	case changed:
		p.log.Warn("upstream is down", "upstream", u.peer.Node, "cause", err)
		u.transport.CloseIdleConnections()
	}
}

// status describes the hosts at one moment.
func (p *pool) status() []UpstreamStatus {
	p.mu.Lock()
	defer p.mu.Unlock()
	list := make([]UpstreamStatus, len(p.upstreams))
	for i, u := range p.upstreams {
		list[i] = UpstreamStatus{
			Node: u.peer.Node, Address: u.peer.Address, Up: u.up, Cause: u.cause,
			InFlight: u.inFlight, Requests: u.requests, WentUp: u.wentUp, WentDown: u.wentDown,
		}
	}
	return list
}
