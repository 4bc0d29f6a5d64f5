// Package balance is the load-balancer node: it spreads HTTP requests, or at
// layer 4 connections, over upstream hosts, keeps users on theirs, and leaves
// out hosts that are down or fail what they are asked for.
//
// Balancer serves in this process, over the standard library's reverse proxy.
// Admin answers operators for any engine; the kit in balancetest holds all engines
// to the same behaviour.
//
// The order of calls is New, Serve in a goroutine, Admin in a server of the
// caller's, SetUpstreams at any time, Shutdown. All methods may be called
// concurrently. State belongs to the instance: two balancers in one process
// share nothing.
//
// No request is sent twice: one that could not be sent, because no connection was
// made or the connection turned out dead before the first byte, goes to another
// host; one that was sent and not answered has failed, whatever its method. Nothing
// is cached, compressed, queued or switched to another protocol (WebSocket), and
// paths, queries and bodies are not judged.
//
// Times are time.Duration; counts are since the start of the instance.
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

// Config says what to balance, and how. The zero value of a field means its
// default, where one is given.
type Config struct {
	sut.Balancing
	// Log receives what becomes of hosts, and the requests that LogRequests says;
	// default nowhere.
	Log *slog.Logger
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
	life     context.Context // of the checks, until end
	end      context.CancelFunc
}

// New makes a balancer. Hosts count as up until a check or a refused connection
// says otherwise.
func New(cfg Config) (*Balancer, error) {
	cfg.Balancing = cfg.Complete()
	if err := cfg.Validate(); err != nil {
		return nil, fmt.Errorf("balance: %w", err)
	}
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	b := &Balancer{
		cfg: cfg, pool: newPool(cfg), probe: newProbe(cfg), joined: make(chan struct{}, 1), ids: sut.NewRequestIDs(),
		hashes: cfg.Policy == sut.PolicyIPHash, identity: []string{"identity"},
		// By then each host has been looked at again.
		retryAfter: strconv.Itoa(int((cfg.HealthInterval + time.Second - 1) / time.Second)),
	}
	b.life, b.end = context.WithCancel(context.Background())
	// What others of the standard library log would not be a line of JSON.
	quiet := slog.NewLogLogger(cfg.Log.Handler(), slog.LevelDebug)
	b.proxy = httputil.ReverseProxy{Rewrite: rewrite, BufferPool: &bufferPool{}, ErrorHandler: b.fail, ErrorLog: quiet}
	b.server = &http.Server{
		Handler: http.HandlerFunc(b.serve), ErrorLog: quiet,
		ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute,
	}
	if cfg.Layer == sut.Layer4 {
		b.forwarder = &forwarder{
			pool: b.pool, dialer: net.Dialer{Timeout: cfg.ConnectTimeout}, hashes: b.hashes,
			redispatched: &b.redispatched, tunnels: map[*tunnel]struct{}{},
		}
	}
	return b, nil
}

// Serve serves clients on a listener, at the configured layer, and checks the
// hosts, until Shutdown: it returns nil then, and what went wrong otherwise. Call
// it once.
func (b *Balancer) Serve(listener net.Listener) error {
	b.checks.Go(func() { b.run(b.life) })
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
		b.end()
		b.checks.Wait()
		b.pool.close()
	})
	return err
}

// SetUpstreams changes the hosts while the balancer serves. A new host takes part once
// a health check of it was good. One that is not listed any more gets no new request or
// connection: SetUpstreams returns when such hosts have finished what they had; when
// they do not before ctx ends they go on, and it returns ctx's error. An error that wraps
// sut.ErrWiring means that nothing has changed. A connection of layer 4 may be open and idle for as long as its client
// likes, and nobody who sees only bytes can tell when to close it.
func (b *Balancer) SetUpstreams(ctx context.Context, m sut.Upstreams) error {
	next := b.cfg.Balancing
	next.Upstreams = m
	if err := next.Validate(); err != nil {
		return fmt.Errorf("%w: %w", sut.ErrWiring, err)
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

// Status says what the balancer knows of its hosts and has done so far.
func (b *Balancer) Status(context.Context) (sut.BalancerStatus, error) {
	status := sut.BalancerStatus{
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
