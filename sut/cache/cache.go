// Package cache is the web host's client of the cache tier. It stores opaque values by
// key on one or more cache hosts. The hosts speak version 2 of the Redis protocol (RESP)
// or the memcached text protocol. Tier adds the caching strategy: it decides what to read,
// to store and to invalidate.
//
// The client does not retry a request at the same host: a read of the database is
// faster than a second timeout, and a repeated write could undo a write in between. It
// starts goroutines only for Load.
//
// A host that does not answer affects only its own keys. It gets no requests for a
// second; requests for its keys fail at once with ErrUnavailable. Then one request
// probes it. A host that comes back with its memory may still have values that were
// deleted while it was away. Clients read these values until they expire.
//
// All methods may be called concurrently. Usual order of calls: New, then Get, Set,
// Delete and Load, SetHosts when the hosts change, Close.
package cache

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"golang.org/x/sync/singleflight"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/swap"
)

// ErrUnavailable means that the host of a key does not answer, or did not answer less
// than a second ago.
var ErrUnavailable = errors.New("cache host unavailable")

var errClosed = errors.New("cache: the client is closed")

const (
	// maxConns is the most connections of one pool; work and values have a pool each.
	maxConns = 64
	// loadTimeout bounds a load, because the contexts of its callers do not.
	loadTimeout = 5 * time.Second
)

// Config is the configuration of a client.
type Config struct {
	Hosts    []sut.Peer // at least one; their names determine the host of each key
	Protocol Protocol   // of all hosts
	Secret   sut.Secret // password of all hosts; "" = they need none
	// Timeout bounds connecting, and each wait for an answer; 0 = 100 ms. A context with
	// an earlier deadline takes precedence.
	Timeout time.Duration
	// WorkTimeout replaces Timeout for all requests except Get, when the hosts load or
	// write records themselves. Choose it so that a caller still has time to ask another
	// host after it. 0 = Timeout applies to all requests.
	WorkTimeout time.Duration
	// FailOver sends requests for the keys of a host that does not answer to the next
	// host on the ring. Use it for hosts that load missing records or hold unflushed
	// writes. Without it, Get fails for these keys, and the caller treats that as a miss.
	FailOver bool
	// Registry gets the metrics stagebench_cache_*.
	Registry prometheus.Registerer
}

// Protocol is the protocol of cache hosts.
type Protocol string

// The protocols. Memcached rounds times to live to seconds. It does not support Fetch
// and Apply.
const (
	RESP      Protocol = ""
	Memcached Protocol = "memcached"
)

// Client is a client of one or more cache hosts.
type Client struct {
	config  Config
	table   swap.Value[*table]
	loads   singleflight.Group
	metrics metrics

	mu      sync.Mutex // serialises changes of the hosts
	current *table     // the newest value of table; nil = the client is closed
}

// table is an immutable set of hosts. The table of a closed client is nil.
type table struct {
	ring  *Ring
	hosts map[string]pools
}

// pools are the two connection pools of one host. Each has its own health: a host with
// slow writes may still serve its values, and a host with slow values may still write.
type pools struct {
	values *host // for Get
	work   *host // for requests that may wait for the database; may be the same as values
}

func newPools(peer sut.Peer, c Config) pools {
	values := newHost(peer, c)
	if c.WorkTimeout == 0 {
		return pools{values, values}
	}
	c.Timeout = c.WorkTimeout
	return pools{values, newHost(peer, c)}
}

func (p pools) close() {
	p.values.close()
	if p.work != p.values {
		p.work.close()
	}
}

// valuesPool and workPool select the pool of a request.
func valuesPool(p pools) *host { return p.values }
func workPool(p pools) *host   { return p.work }

// fillPool selects the pool of a Set that follows a Get. When the Get found the host
// down, it selects the same pool: the Set then fails at once and does not wait for
// WorkTimeout.
func fillPool(p pools) *host {
	if p.values.downUntil.Load() != 0 {
		return p.values
	}
	return p.work
}

// New returns a client. It connects on the first request.
func New(c Config) (*Client, error) {
	c.Timeout = cmp.Or(c.Timeout, 100*time.Millisecond)
	if c.Timeout < 0 || c.WorkTimeout < 0 {
		return nil, fmt.Errorf("cache: Timeout is %v and WorkTimeout is %v: want 0 or more", c.Timeout, c.WorkTimeout)
	}
	if c.Protocol != RESP && c.Protocol != Memcached {
		return nil, fmt.Errorf("cache: unknown protocol %q: want %q or %q", c.Protocol, RESP, Memcached)
	}
	client := &Client{config: c, metrics: newMetrics(), current: &table{}}
	if err := client.SetHosts(context.Background(), c.Hosts); err != nil {
		return nil, err
	}
	if err := client.metrics.register(c.Registry); err != nil {
		client.Close()
		return nil, fmt.Errorf("cache: %w", err)
	}
	return client, nil
}

// SetHosts replaces the hosts. A host with an unchanged name and address keeps its
// connections. SetHosts waits until all requests that started with the old hosts have
// ended, and then returns nil. When ctx ends first, it returns the error of ctx; the new
// hosts are in use all the same.
func (c *Client) SetHosts(ctx context.Context, hosts []sut.Peer) error {
	if len(hosts) == 0 {
		return errors.New("cache: no hosts")
	}
	c.mu.Lock()
	old := c.current
	if old == nil {
		c.mu.Unlock()
		return errClosed
	}
	next := &table{hosts: map[string]pools{}}
	var names []string
	for _, peer := range hosts {
		names = append(names, peer.Node)
		if same, known := old.hosts[peer.Node]; known && same.values.address == peer.Address {
			next.hosts[peer.Node] = same
		} else {
			next.hosts[peer.Node] = newPools(peer, c.config)
		}
	}
	next.ring = NewRing(names)
	return c.replaceTable(ctx, next)
}

// replaceTable replaces the table. It closes the removed hosts when they have no more
// pending requests. The caller holds mu, and replaceTable unlocks it.
func (c *Client) replaceTable(ctx context.Context, next *table) error {
	c.current = next
	wait := c.table.Replace(next, func(old *table) {
		for name, p := range old.hosts {
			if next == nil || next.hosts[name] != p {
				p.close()
			}
		}
	})
	c.mu.Unlock()
	return wait(ctx)
}

// Close waits for pending requests and closes the client.
func (c *Client) Close() {
	c.mu.Lock()
	if c.current == nil {
		c.mu.Unlock()
		return
	}
	_ = c.replaceTable(context.Background(), nil) // cannot fail: this context never ends
}

// idempotent says whether a request may be repeated without another effect.
type idempotent bool

// request sends a request to the host of a key. With Config.FailOver it tries the next
// hosts when that one does not answer. The error is that of ctx, or ErrUnavailable, or
// an error reply of the host.
func (c *Client) request(
	ctx context.Context, key string, pool func(pools) *host, repeatable idempotent, do func(*host) error,
) error {
	t, done := c.table.Use()
	defer done()
	if t == nil {
		return errClosed
	}
	for tries := 0; ; {
		h := pool(t.hosts[t.ring.nthOwner(key, tries)])
		err := h.request(ctx, do)
		c.metrics.countError(h.name, err)
		if err == nil {
			return nil
		}
		tries++
		// A host that did not get the request cannot have applied it. A host that hangs may
		// hold unflushed writes of the key, so only idempotent requests fail over then. A
		// busy host is alive, so nothing fails over.
		next := errors.Is(err, errNotSent) ||
			bool(repeatable) && errors.Is(err, ErrUnavailable) && !errors.Is(err, errBusy)
		if !c.config.FailOver || !next || tries == len(t.hosts) {
			return fmt.Errorf("cache host %s: %w", h.name, err)
		}
	}
}

// Get returns the value of a key. found is false when the host has none.
func (c *Client) Get(ctx context.Context, key string) (value []byte, found bool, err error) {
	err = c.request(ctx, key, valuesPool, true, func(h *host) error {
		value, found, err = h.get(ctx, key)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	c.metrics.countRead(found)
	return value, found, nil
}

// Set stores a value. The time to live is rounded up to milliseconds, or to seconds with
// Memcached; 0 = the value stays until it is evicted.
func (c *Client) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if ttl < 0 {
		return fmt.Errorf("cache: time to live is %v: want 0 or more", ttl)
	}
	return c.request(ctx, key, fillPool, true, func(h *host) error { return h.set(ctx, key, value, ttl) })
}

// Delete removes a key. A missing key is no error. After an error the key may still
// exist. A Load that starts after Delete does not share an earlier one.
func (c *Client) Delete(ctx context.Context, key string) error {
	c.loads.Forget(key)
	return c.request(ctx, key, workPool, true, func(h *host) error { return h.delete(ctx, key) })
}

// Fetch returns the encoded record of a key. The host loads it when it is missing; hit
// is true when it was not. Errors of the database are those of package photos.
func (c *Client) Fetch(ctx context.Context, key string) (value []byte, hit bool, err error) {
	err = c.request(ctx, key, workPool, true, func(h *host) error {
		value, hit, err = h.fetch(ctx, key)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	c.metrics.countRead(hit)
	return value, hit, nil
}

// Apply makes the host of a key write the record, and returns the new version of the
// record. After ErrUnavailable the write may have been applied.
func (c *Client) Apply(ctx context.Context, key string, w Write) (version int64, err error) {
	// A Load that starts after the write must not share an earlier one.
	defer c.loads.Forget(key)
	err = c.request(ctx, key, workPool, false, func(h *host) error {
		version, err = h.apply(ctx, key, w)
		return err
	})
	return version, err
}

// Load calls load and returns its value. Concurrent callers with the same key share one
// call of load (shared is true for all but the first); they must not change the value.
// Load does not access the cache.
//
// A caller whose context ends gets the error of that context at once. The load continues
// for the other callers, for at most 5 s. Its context has the values of the first
// caller's context, but not its cancellation. When load panics, all callers get an error.
func (c *Client) Load(
	ctx context.Context, key string, load func(context.Context) ([]byte, error),
) (value []byte, shared bool, err error) {
	first := false
	result := c.loads.DoChan(key, func() (value any, err error) {
		first = true
		c.metrics.fills.Inc()
		// The load runs in another goroutine. Without recover, a panic would end the
		// process.
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("cache: load %s: panic: %v", key, p)
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), loadTimeout)
		defer cancel()
		return load(ctx)
	})
	select {
	case r := <-result:
		if !first {
			c.metrics.shared.Inc()
		}
		value, _ = r.Val.([]byte)
		return value, !first, r.Err
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}
