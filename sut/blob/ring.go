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

// Place orders hosts by how much a photo belongs to them: its copies are on the
// first of them, and on the next ones where those cannot take it. All variants
// of a photo are together. A host that comes or goes moves only the photos that
// are or were its own.
//
// It is rendezvous hashing, which needs no table and no virtual nodes. Source:
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

// RingConfig says which hosts hold the bytes of photos.
type RingConfig struct {
	Peers  []sut.Peer // at least as many as copies that are not draining
	Copies int        // of each photo on different hosts; 0 = 1
	// Client is what the clients of all hosts have in common; its Address is not
	// used. With several hosts its Timeout is 1 s unless it says otherwise, so that
	// a caller who waits 5 s hears from the hosts after one that hangs.
	Client ClientConfig
	// Registry gets stagebench_blob_copies_missing_total.
	Registry prometheus.Registerer
}

// Ring is several blob hosts as one store, by consistent hash of the photo.
//
// A photo is stored when at least one host has it. What a full or dead host
// cannot take goes to the next one in the photo's order; copies for which there
// is no host are counted, and nothing makes them up later. A read asks the hosts
// in order until one has the object, so that it finds what was handed on. As long
// as a host that may have it does not answer, an object that no other has is
// unavailable and not missing.
//
// A draining host gets no new object. It is asked last for what others do not have.
// A host that did not answer is asked last for a second, so that not every
// request waits for it.
type Ring struct {
	config  RingConfig
	hosts   swap.Value[*hosts]
	setting sync.Mutex // one change of hosts at a time
	missing prometheus.Counter
}

// hosts are those that there are at one time.
type hosts struct {
	names    []string // that objects are placed on
	draining []*host
	all      map[string]*host // by name
}

// host is one blob host as a web host sees it.
type host struct {
	*Client
	silent atomic.Int64 // unix ns until when it is asked last
}

// silence is how long a host that did not answer is asked last.
const silence = time.Second

// NewRing returns the store of those hosts. It connects on the first call; close
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

// Check says what is wrong with hosts for so many copies, or nothing.
func (r *Ring) Check(peers []sut.Peer) error {
	active := 0
	for _, p := range peers {
		if !p.Draining {
			active++
		}
	}
	if copies := r.config.Copies; active == 0 || copies < 1 || copies > active {
		return fmt.Errorf("blob: %d copies on %d hosts: want at least one host, and no more copies than hosts",
			copies, active)
	}
	return nil
}

// SetPeers changes which hosts there are. When it returns nil, nothing is under way any
// more that began with other hosts. When ctx ends before, it returns ctx's error; the
// hosts are the new ones all the same.
func (r *Ring) SetPeers(ctx context.Context, peers []sut.Peer) error {
	if err := r.Check(peers); err != nil {
		return err
	}
	r.setting.Lock()
	old, done := r.hosts.Use()
	if old == nil {
		old = &hosts{}
	}
	client := r.config.Client
	if len(peers) > 1 && client.Timeout == 0 {
		client.Timeout = time.Second
	}
	next := &hosts{all: map[string]*host{}}
	for _, peer := range peers {
		client.Address = peer.Address
		h, fresh := old.all[peer.Node], &host{Client: NewClient(client)}
		if h == nil || h.config.Address != fresh.config.Address || h.config.Timeout != fresh.config.Timeout {
			h = fresh
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
	r.setting.Unlock()
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

// placed lists the hosts that a photo may be placed on, in its order.
func (h *hosts) placed(id photos.ID) []*host {
	var order []*host
	for _, name := range Place(id, h.names) {
		order = append(order, h.all[name])
	}
	return order
}

// silentLast reorders hosts so that those that are silent come last.
func silentLast(hosts []*host) []*host {
	now := time.Now().UnixNano()
	var asked, silent []*host
	for _, h := range hosts {
		if h.silent.Load() > now {
			silent = append(silent, h)
		} else {
			asked = append(asked, h)
		}
	}
	return append(asked, silent...)
}

// heard notes whether a host answered. A caller who left says nothing of it.
func (h *host) heard(ctx context.Context, err error) {
	switch {
	case errors.Is(err, errNoAnswer):
		if ctx.Err() == nil {
			h.silent.Store(time.Now().Add(silence).UnixNano())
		}
	case h.silent.Load() != 0:
		h.silent.Store(0)
	}
}

// Put stores an object on as many hosts as there are copies.
func (r *Ring) Put(ctx context.Context, id photos.ID, v photos.Variant, data []byte) error {
	in, done := r.hosts.Use()
	defer done()
	order := make(chan *host, len(in.names))
	for _, h := range silentLast(in.placed(id)) {
		order <- h
	}
	close(order)
	var mu sync.Mutex
	var failed []error
	stored := 0
	var all sync.WaitGroup
	for range r.config.Copies {
		all.Go(func() {
			for h := range order { // until one takes this copy
				err := h.Put(ctx, id, v, data)
				h.heard(ctx, err)
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

// first asks the hosts of a photo in order until one has what is asked for.
func (r *Ring) first(ctx context.Context, id photos.ID, ask func(*host) error) error {
	in, done := r.hosts.Use()
	defer done()
	placed := in.placed(id)
	order := slices.Concat(silentLast(placed), silentLast(in.draining))
	if len(order) > 1 {
		// An object that moves is pushed to its owners before it leaves where it was. Who
		// asked them before, and the other one after that, finds it at the second attempt.
		order = append(order, placed[:r.config.Copies]...)
	}
	var missing, unavailable error
	for i, h := range order {
		if i >= len(in.all) && unavailable != nil {
			break
		}
		err := ask(h)
		h.heard(ctx, err)
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

// Delete removes an object from all hosts. It fails when one does not answer,
// which may then keep a copy.
func (r *Ring) Delete(ctx context.Context, id photos.ID, v photos.Variant) error {
	in, done := r.hosts.Use()
	defer done()
	owning := owners(id, in.names, r.config.Copies)
	var others []string
	for name := range in.all {
		if !slices.Contains(owning, name) {
			others = append(others, name)
		}
	}
	// An object that moves is pushed to its owners before it leaves where it was, so they
	// come last: whenever it moves, it is found.
	errs := append(in.delete(ctx, others, id, v), in.delete(ctx, owning, id, v)...)
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

// delete removes an object from some hosts, and returns what each of them said.
func (h *hosts) delete(ctx context.Context, names []string, id photos.ID, v photos.Variant) []error {
	errs := make([]error, len(names))
	var all sync.WaitGroup
	for i, name := range names {
		all.Go(func() {
			errs[i] = h.all[name].Delete(ctx, id, v)
			h.all[name].heard(ctx, errs[i])
		})
	}
	all.Wait()
	return errs
}
