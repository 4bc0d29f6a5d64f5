package balance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/attempt"
)

// upstream is one host.
type upstream struct {
	node      string
	address   string // host:port
	hash      uint64 // of the node's name
	transport *http.Transport
	gone      chan struct{} // closed when it was removed and has drained

	// Guarded by the pool's mutex.
	weight         float64
	watched        bool          // a goroutine checks its health
	left           chan struct{} // nil for a member; else closed when it has drained or is a member again
	unhealthyCause string        // "" = the last check was good, and no connection was refused since
	ejected        string        // cause of the ejection, "" when not ejected
	// refusals counts refused connections. A good check that began before the last
	// refusal is stale.
	refusals   uint64
	inFlight   int    // requests, at layer 4 connections
	requests   uint64 // attempts to send a request, at layer 4 to connect
	wentUp     uint64
	wentDown   uint64
	latency    latency
	failures   int // consecutive
	multiplier int // ejectionTime's argument for the last ejection
	ejections  uint64
	returned   time.Time // end of the last ejection
	readmit    *time.Timer
	tunnels    map[*tunnel]struct{} // open connections; layer 4 only
}

func newUpstream(peer sut.Peer) *upstream {
	return &upstream{
		node: peer.Node, address: peer.Address, hash: hashBytes(peer.Node), weight: weightOf(peer),
		transport: newTransport(), gone: make(chan struct{}), tunnels: map[*tunnel]struct{}{},
	}
}

func weightOf(peer sut.Peer) float64 { return cmp.Or(peer.Weight, 1) }

// A host is up, and gets new requests, when it is usable and a member.
func (u *upstream) usable() bool { return u.unhealthyCause == "" && u.ejected == "" }
func (u *upstream) member() bool { return u.left == nil }
func (u *upstream) up() bool     { return u.usable() && u.member() }

// cause returns why the host is not up.
func (u *upstream) cause() string {
	switch {
	case !u.member():
		return "draining: it was removed from the upstreams"
	case u.unhealthyCause != "":
		return u.unhealthyCause
	}
	return u.ejected
}

// newTransport makes the transport for one host.
func newTransport() *http.Transport {
	dialer := net.Dialer{Timeout: sut.ConnectTimeout}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, err := dialer.DialContext(ctx, network, address)
			if err != nil {
				return nil, err
			}
			return attempt.Count(conn), nil
		},
		MaxIdleConnsPerHost: sut.MaxIdlePerUpstream,
		// Shorter than the idle timeout of the host. Otherwise requests would be sent
		// on connections that the host is closing.
		IdleConnTimeout:       30 * time.Second,
		ResponseHeaderTimeout: sut.ResponseTimeout,
		ExpectContinueTimeout: time.Second,
		DisableCompression:    true, // bodies pass unchanged
	}
}

// The duration of an ejection is ejectionBase times a multiplier. Each ejection adds
// 1 to the multiplier. Each ejectionDecay without an ejection subtracts 1. Source:
// Envoy, "Outlier detection".
const (
	ejectionBase  = time.Second
	ejectionMax   = 30 * time.Second
	ejectionDecay = 10 * time.Second
)

// decayMultiplier returns the multiplier after a time without ejections.
func decayMultiplier(multiplier int, quiet time.Duration) int {
	return max(0, multiplier-int(quiet/ejectionDecay))
}

// ejectionTime returns the duration of an ejection.
func ejectionTime(multiplier int) time.Duration {
	return min(ejectionBase*time.Duration(min(multiplier, int(ejectionMax/ejectionBase))), ejectionMax)
}

// verdict is the result of one request for the health of its host.
type verdict int

// Verdicts. Overload of the host (503) and failures of the client give noVerdict.
const (
	noVerdict verdict = iota
	succeeded
	failed
)

// release ends a request, at layer 4 a connection, that acquire counted as in flight.
// cause is the failure of a failed verdict. took is the time to the first byte, 0 when
// there was none.
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

// eject stops new requests to a host for a while. It does not eject the last host
// that is up, of all hosts or of a route: a failing host is better than none.
func (p *pool) eject(u *upstream, cause string) {
	p.change(u, func() {
		if !u.up() || p.lastOfAny(u) {
			return
		}
		if u.multiplier > 0 {
			u.multiplier = decayMultiplier(u.multiplier, time.Since(u.returned))
		}
		u.multiplier++
		u.ejections++
		d := ejectionTime(u.multiplier)
		u.ejected = fmt.Sprintf("ejected for %v after %d consecutive failures, the last: %s", d, u.failures, cause)
		u.failures = 0
		u.readmit = time.AfterFunc(d, func() {
			p.change(u, func() { u.ejected, u.returned = "", time.Now() })
		})
	})
}

// lastOfAny reports whether a host is the last one up, of all hosts or of a route.
func (p *pool) lastOfAny(u *upstream) bool {
	for _, r := range *p.routes.Load() {
		other := func(m *upstream) bool { return m != u && m.up() }
		if slices.Contains(r.group.members, u) && !slices.ContainsFunc(r.group.members, other) {
			return true
		}
	}
	return false
}

// watch checks the health of one host at each interval, first after an offset. It
// returns when ctx ends or the host was removed and has drained.
func (b *Balancer) watch(ctx context.Context, u *upstream, offset time.Duration) {
	first := time.NewTimer(offset)
	defer first.Stop()
	select {
	case <-ctx.Done():
		return
	case <-first.C:
	}
	// Checks of one host never overlap: a slow check delays the next one.
	ticker := time.NewTicker(b.cfg.HealthInterval)
	defer ticker.Stop()
	for {
		refusals := b.pool.refusalsOf(u)
		checkCtx, cancel := context.WithTimeout(ctx, b.cfg.HealthTimeout)
		err := b.probe(checkCtx, u.address)
		cancel()
		if ctx.Err() != nil {
			return
		}
		b.pool.checked(u, refusals, err)
		select {
		case <-ctx.Done():
			return
		case <-u.gone:
			return
		case <-ticker.C:
		}
	}
}

// newProbe returns a function that checks the health of the host at an address. It
// returns nil for a healthy host.
func newProbe() func(ctx context.Context, address string) error {
	client := &http.Client{
		// Each check makes a new connection. An old connection would not show that
		// the host no longer accepts new ones.
		Transport:     &http.Transport{DisableKeepAlives: true, DialContext: (&net.Dialer{}).DialContext},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	return func(ctx context.Context, address string) error {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+sut.HealthPath, nil)
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
		// The connection is not reused, so the body need not be read.
		_ = res.Body.Close()
		if res.StatusCode < 200 || res.StatusCode > 399 {
			return fmt.Errorf("health check: status %d", res.StatusCode)
		}
		return nil
	}
}
