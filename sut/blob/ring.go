package blob

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"hash/fnv"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/swap"
)

// Place returns the hosts in the order of preference for a photo. The first hosts hold
// its copies. If one of them cannot take a copy, the next host does. All variants of a
// photo have the same order. When a host is added or removed, only photos move that
// it owns or owned.
//
// The algorithm is rendezvous hashing, which needs no table and no virtual nodes. Source:
// Thaler and Ravishankar, Using Name-Based Mappings to Increase Hit Rates,
// IEEE/ACM Transactions on Networking 6(1), 1998.
func Place(id photos.ID, hosts []string) []string {
	score := func(host string) uint64 {
		h := fnv.New64a()
		_, _ = h.Write([]byte(host)) // never fails
		return scramble(h.Sum64() ^ scramble(uint64(id)))
	}
	return slices.SortedFunc(slices.Values(hosts), func(a, b string) int {
		return cmp.Or(cmp.Compare(score(b), score(a)), cmp.Compare(a, b))
	})
}

// scramble is the finaliser of MurmurHash3: each input bit changes half of the
// output bits.
func scramble(x uint64) uint64 {
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}

// RingConfig configures a Ring.
type RingConfig struct {
	Peers  []sut.Peer // at least Copies of them must not be draining
	Copies int        // copies of each photo, on different hosts; 0 = 1
	Secret sut.Secret // that of ClientConfig
	// RequestID and Reserve are those of ClientConfig.
	RequestID func(context.Context) string
	Reserve   func(ctx context.Context, bytes int64) error
	// Registry gets stagebench_blob_copies_missing_total.
	Registry prometheus.Registerer

	timeout time.Duration // that of ClientConfig; only tests set it
}

// Ring is one store over several blob hosts, by consistent hash of the photo id.
//
// A write succeeds when at least one host has stored the object. If a host is full or
// down, the next one in the photo's order takes the copy. Ring counts the copies that no
// host could take. It does not write them later. A read tries the hosts in order until
// one has the object, so it also finds copies that another host took. A read that finds
// no object returns photos.ErrUnavailable if a host did not respond, since that host may
// have the object, else photos.ErrNotFound.
//
// A draining host gets no new objects. Reads try it after all other hosts. A host that
// did not respond is tried last for the next second, so that a host that is down does
// not delay every request.
type Ring struct {
	config  RingConfig
	hosts   swap.Value[*hosts]
	peersMu sync.Mutex // held by SetPeers
	missing prometheus.Counter
}

// hosts is the set of hosts between two calls of SetPeers.
type hosts struct {
	names    []string // hosts that objects are placed on
	draining []*host
	all      map[string]*host // by name, including draining ones
}

// host is the client of one blob host, with the health that this process has observed.
type host struct {
	*Client
	suspectUntil atomic.Int64 // Unix time in ns; until then the host is tried last; 0 = it responds
}

// suspectFor is how long a host is tried last after it did not respond.
const suspectFor = time.Second

// NewRing returns a store over the configured hosts. It connects on the first call. Close
// it when it is no longer needed.
func NewRing(c RingConfig) (*Ring, error) {
	c.Copies = cmp.Or(c.Copies, 1)
	r := &Ring{config: c, missing: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "stagebench_blob_copies_missing_total", Help: "Copies of photos that no host could take.",
	})}
	if err := r.SetPeers(context.Background(), c.Peers); err != nil {
		return nil, err
	}
	if err := c.Registry.Register(r.missing); err != nil {
		return nil, fmt.Errorf("blob: %w", err)
	}
	return r, nil
}

// Check returns an error if the peers are too few for the configured copies.
func (r *Ring) Check(peers []sut.Peer) error {
	active := 0
	for _, p := range peers {
		if !p.Draining {
			active++
		}
	}
	if copies := r.config.Copies; active == 0 || copies < 1 || copies > active {
		return fmt.Errorf("blob: %d copies on %d hosts: want at least one copy, and no more copies than hosts",
			copies, active)
	}
	return nil
}

// SetPeers replaces the hosts. It returns nil when all calls that started with the earlier
// hosts have ended. If ctx ends first, it returns the error of ctx; new calls use the new
// hosts in that case, too.
func (r *Ring) SetPeers(ctx context.Context, peers []sut.Peer) error {
	if err := r.Check(peers); err != nil {
		return err
	}
	r.peersMu.Lock()
	old, done := r.hosts.Use()
	if old == nil {
		old = &hosts{}
	}
	client := ClientConfig{
		Secret: r.config.Secret, RequestID: r.config.RequestID, Reserve: r.config.Reserve, timeout: r.config.timeout,
	}
	if len(peers) > 1 { // a caller with a deadline of 5 s reaches the next hosts when one hangs
		client.timeout = cmp.Or(client.timeout, time.Second)
	}
	next := &hosts{all: map[string]*host{}}
	for _, peer := range peers {
		client.Address = peer.Address
		h, created := old.all[peer.Node], &host{Client: NewClient(client)}
		if h == nil || h.config.Address != created.config.Address || h.config.timeout != created.config.timeout {
			h = created
		}
		next.all[peer.Node] = h
		if peer.Draining {
			next.draining = append(next.draining, h)
		} else {
			next.names = append(next.names, peer.Node)
		}
	}
	done()
	wait := r.hosts.Replace(next, func(old *hosts) {
		for name, h := range old.all {
			if next.all[name] != h {
				h.Client.Close()
			}
		}
	})
	r.peersMu.Unlock()
	return wait(ctx)
}

// Close closes the idle connections.
func (r *Ring) Close() {
	hosts, done := r.hosts.Use()
	defer done()
	for _, h := range hosts.all {
		h.Client.Close()
	}
}

// placed returns the hosts that are not draining, in the order of Place.
func (h *hosts) placed(id photos.ID) []*host {
	var order []*host
	for _, name := range Place(id, h.names) {
		order = append(order, h.all[name])
	}
	return order
}

// suspectsLast moves the suspect hosts to the end and keeps the order otherwise.
func suspectsLast(hosts []*host) []*host {
	now := time.Now().UnixNano()
	var healthy, suspect []*host
	for _, h := range hosts {
		if h.suspectUntil.Load() > now {
			suspect = append(suspect, h)
		} else {
			healthy = append(healthy, h)
		}
	}
	return append(healthy, suspect...)
}

// observe records whether the host responded to a call. A call whose own ctx has ended
// does not make the host suspect: the caller gave up, so the host may be healthy.
func (h *host) observe(ctx context.Context, err error) {
	switch {
	case errors.Is(err, errNoResponse):
		if ctx.Err() == nil {
			h.suspectUntil.Store(time.Now().Add(suspectFor).UnixNano())
		}
	case h.suspectUntil.Load() != 0:
		h.suspectUntil.Store(0)
	}
}

// Put stores the copies of an object. It returns nil if at least one host stored it.
func (r *Ring) Put(ctx context.Context, id photos.ID, v photos.Variant, data []byte) error {
	current, done := r.hosts.Use()
	defer done()
	order := make(chan *host, len(current.names))
	for _, h := range suspectsLast(current.placed(id)) {
		order <- h
	}
	close(order)
	var mu sync.Mutex
	var failed []error
	stored := 0
	var all sync.WaitGroup
	for range r.config.Copies {
		all.Go(func() {
			for h := range order { // until one stores this copy
				err := h.Put(ctx, id, v, data)
				h.observe(ctx, err)
				mu.Lock()
				if err == nil {
					stored++
				} else {
					failed = append(failed, err)
				}
				mu.Unlock()
				if err == nil {
					return
				}
			}
		})
	}
	all.Wait()
	if stored == 0 {
		return errors.Join(failed...)
	}
	r.missing.Add(float64(r.config.Copies - stored))
	return nil
}

// Get returns an object.
func (r *Ring) Get(ctx context.Context, id photos.ID, v photos.Variant) (data []byte, err error) {
	err = r.first(ctx, id, func(h *host) error {
		data, err = h.Get(ctx, id, v)
		return err
	})
	return data, err
}

// Head returns the size of an object.
func (r *Ring) Head(ctx context.Context, id photos.ID, v photos.Variant) (size int64, err error) {
	err = r.first(ctx, id, func(h *host) error {
		size, err = h.Head(ctx, id, v)
		return err
	})
	return size, err
}

// first calls read for the hosts of a photo, in order, until one of them has the object.
func (r *Ring) first(ctx context.Context, id photos.ID, read func(*host) error) error {
	current, done := r.hosts.Use()
	defer done()
	placed := current.placed(id)
	order := slices.Concat(suspectsLast(placed), suspectsLast(current.draining))
	if len(order) > 1 {
		// Try the owners a second time. A moving object is pushed to its owners before it
		// is removed from its old host. A read that tried the owners before the push and
		// the old host after the removal would otherwise miss it.
		order = append(order, placed[:r.config.Copies]...)
	}
	var missing, unavailable error
	for i, h := range order {
		if i >= len(current.all) && unavailable != nil {
			break
		}
		err := read(h)
		h.observe(ctx, err)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, photos.ErrNotFound):
			missing = err
		default:
			unavailable = err
		}
		if ctx.Err() != nil {
			break
		}
	}
	if unavailable != nil {
		return unavailable
	}
	return missing
}

// Delete removes an object from all hosts. It returns an error if one of them did not
// respond: that host may keep a copy.
func (r *Ring) Delete(ctx context.Context, id photos.ID, v photos.Variant) error {
	current, done := r.hosts.Use()
	defer done()
	owning := owners(id, current.names, r.config.Copies)
	var others []string
	for name := range current.all {
		if !slices.Contains(owning, name) {
			others = append(others, name)
		}
	}
	// The owners come last. A moving object is pushed to its owners before it is removed
	// from its old host. In the opposite order a delete could miss both copies.
	errs := append(current.delete(ctx, others, id, v), current.delete(ctx, owning, id, v)...)
	var missing, failed error
	deleted := false
	for _, err := range errs {
		switch {
		case err == nil:
			deleted = true
		case errors.Is(err, photos.ErrNotFound):
			missing = err
		default:
			failed = errors.Join(failed, err)
		}
	}
	switch {
	case failed != nil:
		return failed
	case deleted:
		return nil
	}
	return missing
}

// delete removes an object from the named hosts. It returns their errors in the same order.
func (h *hosts) delete(ctx context.Context, names []string, id photos.ID, v photos.Variant) []error {
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			errs[i] = h.all[name].Delete(ctx, id, v)
			h.all[name].observe(ctx, errs[i])
		})
	}
	all.Wait()
	return errs
}
