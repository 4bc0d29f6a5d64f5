package balance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// upstream is one host.
type upstream struct {
	node      string
	address   string // host:port
	hash      uint64 // of the node's name
	transport *http.Transport
	gone      chan struct{} // closed when it is no member any more and has finished

	// Guarded by the pool's mutex.
	weight  float64
	watched bool          // somebody checks its health
	left    chan struct{} // of one that is no member: closed when it has finished or is a member again
	well    bool          // by its last check, and no connection was refused since
	unwell  string        // why it is not well
	ejected string        // why it is ejected, "" when it is not
	// verdicts counts what requests found out about the host. A check that
	// began before the last of them knows less.
	verdicts  uint64
	inFlight  int
	requests  uint64 // attempts to send one to it
	wentUp    uint64
	wentDown  uint64
	latency   latency
	failures  int // in a row
	strikes   int // ejections that make the next one longer
	ejections uint64
	returned  time.Time // when the last ejection ended
	readmit   *time.Timer
	tunnels   map[*tunnel]struct{} // connections that lead to it; layer 4 only
}

func newUpstream(cfg Config, peer sut.Peer) *upstream {
	return &upstream{
		node: peer.Node, address: peer.Address, hash: hashBytes(peer.Node), weight: weightOf(peer),
		transport: newTransport(cfg), gone: make(chan struct{}), tunnels: map[*tunnel]struct{}{},
	}
}

func weightOf(peer sut.Peer) float64 { return cmp.Or(peer.Weight, 1) }

// fit reports whether the host can be given work; member whether it may.
func (u *upstream) fit() bool    { return u.well && u.ejected == "" }
func (u *upstream) member() bool { return u.left == nil }
func (u *upstream) up() bool     { return u.fit() && u.member() }

// cause says why the host is not up.
func (u *upstream) cause() string {
	switch {
	case !u.member():
		return "draining: it is no member any more"
	case !u.well:
		return u.unwell
	}
	return u.ejected
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

// How long a host is ejected. Source: Envoy, "Outlier detection": the time is
// the base multiplied by the number of times that the host has been ejected in a
// row, which goes down again while it behaves.
const (
	ejectionBase   = time.Second
	ejectionMax    = 30 * time.Second
	ejectionForget = 10 * time.Second // of good behaviour take one ejection back
)

// strikesAfter is the number of ejections that still count after a time in which
// there was none.
func strikesAfter(strikes int, behaved time.Duration) int {
	return max(0, strikes-int(behaved/ejectionForget))
}

// ejectionTime is how long the n-th ejection in a row lasts.
func ejectionTime(n int) time.Duration {
	return min(ejectionBase*time.Duration(min(n, int(ejectionMax/ejectionBase))), ejectionMax)
}

// verdict is what an errand says about its host.
type verdict int

// Verdicts. A host that is full says so and is no failure; neither is what the
// client did.
const (
	noVerdict verdict = iota
	succeeded
	failed
)

// release says that an errand has come to its end: what that says about the
// host, why, and how long it took to the first byte (0 = there was none).
func (p *pool) release(u *upstream, v verdict, cause string, took time.Duration) {
	p.mu.Lock()
	u.inFlight--
	if u.inFlight == 0 && !u.member() {
		p.finish(u)
	}
	if p.timed && (v == failed || v == succeeded && took > 0) {
		u.latency = u.latency.observe(time.Since(p.began), took, v == failed)
	}
	switch v {
	case succeeded:
		u.failures = 0
	case failed:
		u.failures++
	}
	eject := v == failed && p.cfg.EjectAfter > 0 && u.failures >= p.cfg.EjectAfter
	p.mu.Unlock()
	if eject {
		p.eject(u, cause)
	}
}

// eject takes a host out for a while, unless somebody would be left without a
// host: a bad one is better than none.
func (p *pool) eject(u *upstream, cause string) {
	p.change(u, func() {
		if !u.up() || p.lastOfAny(u) {
			return
		}
		if u.strikes > 0 {
			u.strikes = strikesAfter(u.strikes, time.Since(u.returned))
		}
		u.strikes++
		u.ejections++
		d := ejectionTime(u.strikes)
		u.ejected = fmt.Sprintf("ejected for %v after %d failures in a row, the last: %s", d, u.failures, cause)
		u.failures = 0
		u.readmit = time.AfterFunc(d, func() {
			p.change(u, func() { u.ejected, u.returned = "", time.Now() })
		})
	})
}

// lastOfAny reports whether a host is the last one that is up for all requests
// or for those of a route.
func (p *pool) lastOfAny(u *upstream) bool {
	for _, r := range *p.routes.Load() {
		other := func(m *upstream) bool { return m != u && m.up() }
		if slices.Contains(r.group.members, u) && !slices.ContainsFunc(r.group.members, other) {
			return true
		}
	}
	return false
}

// watch checks one host each interval, the first time after an offset, until ctx
// ends or the host is gone.
func (b *Balancer) watch(ctx context.Context, u *upstream, offset time.Duration) {
	select {
	case <-ctx.Done():
		return
	case <-time.After(offset):
	}
	// A check that takes longer than the interval delays the next: there are
	// never two at once.
	ticker := time.NewTicker(b.cfg.HealthInterval)
	defer ticker.Stop()
	for {
		verdicts := b.pool.verdictsOf(u)
		checkCtx, cancel := context.WithTimeout(ctx, b.cfg.HealthTimeout)
		err := b.probe(checkCtx, u.address)
		cancel()
		if ctx.Err() != nil {
			return
		}
		b.pool.checked(u, verdicts, err)
		select {
		case <-ctx.Done():
			return
		case <-u.gone:
			return
		case <-ticker.C:
		}
	}
}

// newProbe makes a check of a host's health: it returns nil when the host at the address
// is well.
func newProbe(cfg Config) func(ctx context.Context, address string) error {
	client := &http.Client{
		// A new connection each time: an old one would not show that the host
		// accepts no more.
		Transport:     &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context, address string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+cfg.HealthPath, nil)
		if err != nil {
			return err
		}
		res, err := client.Do(req)
		if errors.Is(err, context.DeadlineExceeded) {
			return errors.New("health check: no answer in time")
		}
		if err != nil {
			return fmt.Errorf("health check: %w", err)
		}
		// The connection is not used again, so that the body need not be read.
		_ = res.Body.Close()
		if res.StatusCode < 200 || res.StatusCode > 399 {
			return fmt.Errorf("health check: status %d", res.StatusCode)
		}
		return nil
	}
}
