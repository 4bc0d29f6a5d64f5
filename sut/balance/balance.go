// Package balance is the load-balancer node. It spreads HTTP requests (layer 7)
// or connections (layer 4) over upstream hosts, keeps a user on one host, and
// skips hosts that are down or that fail requests.
//
// Balancer serves in this process and uses the standard library's reverse proxy.
// Admin serves the operator endpoints of any engine. The test kit in balancetest
// checks that all engines behave the same.
//
// The order of calls is New, Serve in a goroutine, Admin in the caller's own HTTP
// server, SetUpstreams at any time, Shutdown. All methods may be called
// concurrently. Two balancers in one process share no state.
//
// A balancer never sends a request twice. If no byte of a request was sent, because
// no connection was made or the connection was already dead, the request goes to
// another host. If a request was sent and got no answer, it has failed, whatever
// its method. A balancer does not cache, compress, queue, or switch protocols
// (WebSocket), and it does not validate paths, queries or bodies.
//
// Times are time.Duration. Counts start at 0 with the instance.
package balance

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Config is the configuration of a Balancer. The zero value of a field means its
// default, where one is given.
type Config struct {
	sut.Balancing
	// Log receives the changes of hosts between up and down, and the requests that
	// LogRequests selects. Default: no log.
	Log *slog.Logger
	// Bound limits the connections of clients at layer 7; nil = no limit. Full reports whether a request came over a
	// connection above the limit. It gets 503, and the connection is closed.
	Bound Bound
	Full  func(context.Context) bool
	// MaxTunnels is the maximum number of connections of clients at layer 4; 0 = no limit. A further connection is closed.
	MaxTunnels int
}

// Bound limits the connections of a server, as conns.Bound does.
type Bound interface {
	Attach(server *http.Server)
	Listen(inner net.Listener) net.Listener
}

// Balancer is the embedded load balancer.
type Balancer struct {
	cfg          Config
	pool         *pool
	probe        func(ctx context.Context, address string) error // one health check
	unsticky     atomic.Bool                                     // Upstreams.Unsticky
	joined       chan struct{}                                   // receives after the members may have changed
	redispatched atomic.Uint64

	// Layer 7.
	proxy      httputil.ReverseProxy // a template, copied for each request
	server     *http.Server
	ids        *sut.RequestIDs
	hashes     bool                // the policy needs the hash of the client's address
	identity   []string            // the Transfer-Encoding "identity"; read only
	retryAfter string              // Retry-After header, in seconds, sent when no host is up
	finished   [1000]atomic.Uint64 // finished requests, by status

	forwarder *forwarder // layer 4

	checks       sync.WaitGroup
	shutdownOnce sync.Once
	checkCtx     context.Context // of the health checks
	stopChecks   context.CancelFunc
}

// New makes a balancer. Hosts count as up until a health check fails or a
// connection is refused.
func New(cfg Config) (*Balancer, error) {
	cfg.Balancing = cfg.Complete()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("balance: %w", err)
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	b := &Balancer{
		cfg: cfg, pool: newPool(cfg), probe: newProbe(), joined: make(chan struct{}, 1), ids: sut.NewRequestIDs(),
		hashes: cfg.Policy == sut.PolicyIPHash, identity: []string{"identity"},
		// Each host is checked again within this time.
		retryAfter: strconv.Itoa(int((cfg.HealthInterval + time.Second - 1) / time.Second)),
	}
	b.checkCtx, b.stopChecks = context.WithCancel(context.Background())
	b.unsticky.Store(cfg.Unsticky)
	// Without this, the standard library would log lines that are not JSON.
	quiet := slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug)
	b.proxy = httputil.ReverseProxy{Rewrite: rewrite, BufferPool: &bufferPool{}, ErrorHandler: b.fail, ErrorLog: quiet}
	b.server = &http.Server{
		Handler: http.HandlerFunc(b.serve), ErrorLog: quiet,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute,
		MaxHeaderBytes: sut.MaxHeaderBytes,
	}
	if cfg.Bound != nil {
		cfg.Bound.Attach(b.server)
	}
	if cfg.Layer == sut.Layer4 {
		b.forwarder = &forwarder{
			pool: b.pool, dialer: net.Dialer{Timeout: sut.ConnectTimeout}, hashes: b.hashes,
			redispatched: &b.redispatched, tunnels: map[*tunnel]struct{}{}, maxTunnels: cfg.MaxTunnels,
		}
	}
	return b, nil
}

// Serve serves clients on a listener, at the configured layer, and checks the
// hosts. It returns nil after Shutdown, and an error when the listener fails. Call
// it once.
func (b *Balancer) Serve(listener net.Listener) error {
	b.checks.Go(func() { b.run(b.checkCtx) })
	serve := b.server.Serve
	switch {
	case b.forwarder != nil:
		serve = b.forwarder.serve
	case b.cfg.Bound != nil:
		listener = b.cfg.Bound.Listen(listener)
	}
	if err := serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// Shutdown stops accepting clients and waits for the requests in flight, at layer 4
// for the open connections. When ctx ends first, it closes the remaining ones and
// returns the error of ctx. It then stops the health checks. No goroutine and no
// connection remains after it.
func (b *Balancer) Shutdown(ctx context.Context) error {
	var err error
	b.shutdownOnce.Do(func() {
		if b.forwarder != nil {
			err = b.forwarder.shutdown(ctx)
		} else if err = b.server.Shutdown(ctx); err != nil {
			err = errors.Join(err, b.server.Close())
		}
		b.stopChecks()
		b.checks.Wait()
		b.pool.close()
	})
	return err
}

// SetUpstreams replaces the hosts while the balancer serves. A new host gets requests
// after its first good health check. A removed host gets no new request or connection
// and finishes what it has in flight. SetUpstreams returns when all removed hosts have
// drained. If ctx ends first, it returns the error of ctx, and the hosts continue to
// drain. At layer 4 this is likely: a client may keep an idle connection open without
// limit. An error that wraps sut.ErrWiring means that nothing has changed.
func (b *Balancer) SetUpstreams(ctx context.Context, m sut.Upstreams) error {
	next := b.cfg.Balancing
	next.Upstreams = m
	if err := next.Validate(); err != nil {
		return fmt.Errorf("%w: %w", sut.ErrWiring, err)
	}
	b.unsticky.Store(m.Unsticky)
	departures := b.pool.setMembers(m)
	select {
	case b.joined <- struct{}{}:
	default: // run is already notified
	}
	for _, d := range departures {
		select {
		case <-d.over:
		case <-ctx.Done():
			return fmt.Errorf("balance: %s still has requests or connections in flight: %w", d.node, ctx.Err())
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
		// Spread the checks over the interval: they would all start at once otherwise.
		offset := b.cfg.HealthInterval * time.Duration(i) / time.Duration(len(first))
		checks.Go(func() { b.watch(ctx, u, offset) })
	}
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.joined:
			// Check a new host at once: it gets no requests before its first check.
			for _, u := range b.pool.unwatched() {
				checks.Go(func() { b.watch(ctx, u, 0) })
			}
		}
	}
}

// Status returns the state of the hosts and the counts since the start. The error
// is always nil.
func (b *Balancer) Status(context.Context) (sut.BalancerStatus, error) {
	status := sut.BalancerStatus{
		Node: b.cfg.Node, Engine: sut.OwnBalance, Layer: b.cfg.Layer, Policy: b.cfg.Policy,
		Sticky: b.cfg.Sticky && !b.unsticky.Load(), Redispatches: b.redispatched.Load(), Upstreams: b.pool.status(),
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
