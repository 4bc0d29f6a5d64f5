// Package cache is the client of the cache tier that a web host uses: opaque values
// by key on several hosts that speak Redis' protocol, version 2, or memcached's text
// protocol.
//
// It is a client and no more: when to ask, what to store and what to forget when
// something is written is decided by who uses it. It never retries, as a caller has
// the database, which is faster than a second timeout, and a write that is done
// twice may undo another one between. It starts no goroutine but for Load.
//
// A host that does not answer costs its own keys only: it is left alone for a second,
// in which its keys are answered with ErrUnavailable at once, and then tried by a
// single request. What it missed meanwhile it has missed: a host that comes back with
// its memory may have values that were deleted while it was away, for as long as they
// live.
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

// ErrUnavailable says that the host of a key does not answer, or did not a moment ago.
var ErrUnavailable = errors.New("cache host unavailable")

// errClosed says that a client is not in use any more.
var errClosed = errors.New("cache: the client is closed")

// Config is what a client is made of.
type Config struct {
	Hosts    []sut.Peer // at least one; their names decide who has which keys
	Protocol Protocol   // of all of them
	// Timeout is how long a host may take to connect, and to answer; 0 = 100 ms. A
	// context that ends before counts, too.
	Timeout time.Duration
	// WorkTimeout is for hosts that load or write records themselves: how long they may
	// take for everything but Get, which waits for no records. It should leave a caller
	// time to turn elsewhere. 0 = hosts that do not, for which Timeout holds.
	WorkTimeout time.Duration
	// LoadTimeout is how long a load may take whose callers have all gone; 0 = 5 s.
	LoadTimeout time.Duration
	MaxConns    int // to each host, on each of its lines; 0 = 64
	// FailOver has the next host on the ring asked for the keys of one that does not
	// answer: for hosts that load what they do not have, or hold what the database does
	// not have yet. Without it such a key is a miss.
	FailOver bool
	// Registry gets stagebench_cache_*.
	Registry prometheus.Registerer
}

// Protocol is how hosts are spoken to.
type Protocol string

// The protocols. Memcached counts times to live in seconds, and has no Fetch and Apply.
const (
	RESP      Protocol = ""
	Memcached Protocol = "memcached"
)

// Client is a client of several cache hosts.
type Client struct {
	config  Config
	table   swap.Value[*table]
	loads   singleflight.Group
	figures figures

	mu   sync.Mutex // one change of hosts at a time
	last *table     // in table; nil = the client is closed
}

// table is which hosts there are; it is never changed. A client that is closed has none.
type table struct {
	ring  *Ring
	hosts map[string]lines
}

// lines are two ways to one host, each with connections and a silence of its own: a host
// that is slow to write has not lost its values, and one whose values are slow may
// still write.
type lines struct {
	quick *host // for Get
	work  *host // for all that may wait for records; the same where nothing does
}

func newLines(peer sut.Peer, c Config) lines {
	quick := newHost(peer, c)
	if c.WorkTimeout == 0 {
		return lines{quick, quick}
	}
	c.Timeout = c.WorkTimeout
	return lines{quick, newHost(peer, c)}
}

func (l lines) close() {
	l.quick.close()
	if l.work != l.quick {
		l.work.close()
	}
}

// toValues, toWork and toFill choose a line.
func toValues(l lines) *host { return l.quick }
func toWork(l lines) *host   { return l.work }

// toFill is for what follows a Get: nobody waits for a host that has not answered that.
func toFill(l lines) *host {
	if l.quick.silent.Load() != 0 {
		return l.quick
	}
	return l.work
}

// New returns a client. It connects on the first call.
func New(c Config) (*Client, error) {
	c.Timeout = cmp.Or(c.Timeout, 100*time.Millisecond)
	c.LoadTimeout = cmp.Or(c.LoadTimeout, 5*time.Second)
	c.MaxConns = cmp.Or(c.MaxConns, 64)
	if c.Timeout < 0 || c.WorkTimeout < 0 || c.LoadTimeout < 0 || c.MaxConns < 0 {
		return nil, errors.New("cache: negative limit")
	}
	if c.Protocol != RESP && c.Protocol != Memcached {
		return nil, fmt.Errorf("cache: unknown protocol %q", c.Protocol)
	}
	client := &Client{config: c, figures: newFigures(), last: &table{}}
	if err := client.SetHosts(context.Background(), c.Hosts); err != nil {
		return nil, err
	}
	if err := client.figures.register(c.Registry); err != nil {
		client.Close()
		return nil, fmt.Errorf("cache: %w", err)
	}
	return client, nil
}

// SetHosts changes which hosts there are. Those that stay keep their connections. When
// it returns nil, nothing is under way any more that began with other hosts: a key is
// asked for at its new host alone. When ctx ends before, it returns ctx's error; the
// hosts are the new ones all the same.
func (c *Client) SetHosts(ctx context.Context, hosts []sut.Peer) error {
	if len(hosts) == 0 {
		return errors.New("cache: no hosts")
	}
	c.mu.Lock()
	old := c.last
	if old == nil {
		c.mu.Unlock()
		return errClosed
	}
	next := &table{hosts: map[string]lines{}}
	var names []string
	for _, peer := range hosts {
		names = append(names, peer.Node)
		if same, known := old.hosts[peer.Node]; known && same.quick.address == peer.Address {
			next.hosts[peer.Node] = same
		} else {
			next.hosts[peer.Node] = newLines(peer, c.config)
		}
	}
	next.ring = NewRing(names)
	return c.become(ctx, next)
}

// become replaces the table, and closes the hosts that have left when nothing is under
// way to them. It unlocks mu, which the caller holds.
func (c *Client) become(ctx context.Context, next *table) error {
	c.last = next
	wait := c.table.Replace(next, func(old *table) {
		for name, l := range old.hosts {
			if next == nil || next.hosts[name] != l {
				l.close()
			}
		}
	})
	c.mu.Unlock()
	return wait(ctx)
}

// Close ends the client. What is under way is finished first.
func (c *Client) Close() {
	c.mu.Lock()
	if c.last == nil {
		c.mu.Unlock()
		return
	}
	_ = c.become(context.Background(), nil) // which never ends
}

// repeatable says whether doing something twice is the same as doing it once.
type repeatable bool

// ask does something at the host of a key, or, where that is asked for, at the next
// one when it does not answer. The error is of the caller's context, or an
// ErrUnavailable, or a refusal of the host.
func (c *Client) ask(
	ctx context.Context, key string, line func(lines) *host, twice repeatable, do func(*host) error,
) error {
	t, done := c.table.Use()
	defer done()
	if t == nil {
		return errClosed
	}
	for tries := 0; ; {
		h := line(t.hosts[t.ring.nth(key, tries)])
		err := h.ask(ctx, do)
		c.figures.asked(h.name, err)
		if err == nil {
			return nil
		}
		tries++
		// What a host that is busy or hangs may hold unflushed no other host knows of: it
		// is not written past.
		away := errors.Is(err, errUnasked) || bool(twice) && errors.Is(err, ErrUnavailable) && !errors.Is(err, errBusy)
		if !c.config.FailOver || !away || tries == len(t.hosts) {
			return fmt.Errorf("cache host %s: %w", h.name, err)
		}
	}
}

// Get returns the value of a key; found is false when the host has none.
func (c *Client) Get(ctx context.Context, key string) (value []byte, found bool, err error) {
	err = c.ask(ctx, key, toValues, true, func(h *host) error {
		value, found, err = h.get(ctx, key)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	c.figures.read(found)
	return value, found, nil
}

// Set stores a value for some time, which is rounded up to ms, or to s for Memcached;
// 0 = until it is evicted.
func (c *Client) Set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if ttl < 0 {
		return fmt.Errorf("cache: a time to live of %v", ttl)
	}
	return c.ask(ctx, key, toFill, true, func(h *host) error { return h.set(ctx, key, value, ttl) })
}

// Delete removes a key, whether it is there or not. After an error it may be there
// still. A Load that begins after it is not answered by one from before.
func (c *Client) Delete(ctx context.Context, key string) error {
	c.loads.Forget(key)
	return c.ask(ctx, key, toWork, true, func(h *host) error { return h.delete(ctx, key) })
}

// Fetch has the host of a key load its record, unless it is there, which is a hit. The
// errors of records come as those of package photos.
func (c *Client) Fetch(ctx context.Context, key string) (value []byte, hit bool, err error) {
	err = c.ask(ctx, key, toWork, true, func(h *host) error {
		value, hit, err = h.fetch(ctx, key)
		return err
	})
	if err != nil {
		return nil, false, err
	}
	c.figures.read(hit)
	return value, hit, nil
}

// Apply has the host of a key write to its record, and returns the record's new
// version. After an ErrUnavailable the write may have been done.
func (c *Client) Apply(ctx context.Context, key string, w Write) (version int64, err error) {
	// Who asks from now on is not answered by what was read before.
	defer c.loads.Forget(key)
	err = c.ask(ctx, key, toWork, false, func(h *host) error {
		version, err = h.apply(ctx, key, w)
		return err
	})
	return version, err
}

// Load gets the value of a key from somewhere else: load is called once however many
// callers there are for a key at the same time, and all get what it returns, which
// they must not change. Load itself neither asks the cache nor stores.
//
// A caller whose context ends gets its error at once; the load goes on for the
// others, with the values of the first caller's context, but not its end. When load
// panics, all callers get an error.
func (c *Client) Load(
	ctx context.Context, key string, load func(context.Context) ([]byte, error),
) (value []byte, shared bool, err error) {
	first := false
	result := c.loads.DoChan(key, func() (value any, err error) {
		first = true
		c.figures.fills.Inc()
		// In a goroutine of its own a panic would end the process.
		defer func() {
			if p := recover(); p != nil {
				err = fmt.Errorf("cache: load %s: panic: %v", key, p)
			}
		}()
		ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.config.LoadTimeout)
		defer cancel()
		return load(ctx)
	})
	select {
	case r := <-result:
		if !first {
			c.figures.shared.Inc()
		}
		value, _ = r.Val.([]byte)
		return value, !first, r.Err
	case <-ctx.Done():
		return nil, false, ctx.Err()
	}
}
