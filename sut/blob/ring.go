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
	type candidate struct {
		host  string
		score uint64
	}
	all := make([]candidate, len(hosts))
	for i, host := range hosts {
		h := fnv.New64a()
		_, _ = h.Write([]byte(host)) // never fails
		all[i] = candidate{host, scramble(h.Sum64() ^ scramble(uint64(id)))}
	}
	slices.SortFunc(all, func(a, b candidate) int {
		return cmp.Or(-cmp.Compare(a.score, b.score), cmp.Compare(a.host, b.host))
	})
	order := make([]string, len(all))
	for i, c := range all {
		order[i] = c.host
	}
	return order
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
	Peers  []sut.Peer // at least one
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
// A host that did not answer is asked last for a second, so that not every
// request waits for it.
type Ring struct {
	names   []string
	hosts   map[string]*host
	copies  int
	missing prometheus.Counter
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
	copies := cmp.Or(c.Copies, 1)
	if len(c.Peers) == 0 || copies < 1 || copies > len(c.Peers) {
		return nil, fmt.Errorf("blob: %d copies on %d hosts: want at least one host, and no more copies than hosts", copies, len(c.Peers))
	}
	r := &Ring{hosts: map[string]*host{}, copies: copies, missing: prometheus.NewCounter(prometheus.CounterOpts{
		Name: "stagebench_blob_copies_missing_total", Help: "Copies of photos that no host could take.",
	})}
	if err := c.Registry.Register(r.missing); err != nil {
		return nil, fmt.Errorf("blob: %w", err)
	}
	if len(c.Peers) > 1 && c.Client.Timeout == 0 {
		c.Client.Timeout = time.Second
	}
	for _, peer := range c.Peers {
		config := c.Client
		config.Address = peer.Address
		r.names = append(r.names, peer.Node)
		r.hosts[peer.Node] = &host{Client: NewClient(config)}
	}
	return r, nil
}

// Close closes the idle connections.
func (r *Ring) Close() {
	for _, h := range r.hosts {
		h.Client.Close()
	}
}

// order lists the hosts of a photo, those that are silent last.
func (r *Ring) order(id photos.ID) []*host {
	now := time.Now().UnixNano()
	var asked, silent []*host
	for _, name := range Place(id, r.names) {
		h := r.hosts[name]
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
	hosts := make(chan *host, len(r.names))
	for _, h := range r.order(id) {
		hosts <- h
	}
	close(hosts)
	var mu sync.Mutex
	var failed []error
	stored := 0
	var all sync.WaitGroup
	for range r.copies {
		all.Go(func() {
			for h := range hosts { // until one takes this copy
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
	r.missing.Add(float64(r.copies - stored))
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
	var missing, unavailable error
	for _, h := range r.order(id) {
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
	errs := make([]error, len(r.names))
	var all sync.WaitGroup
	for i, name := range r.names {
		all.Go(func() {
			errs[i] = r.hosts[name].Delete(ctx, id, v)
			r.hosts[name].heard(ctx, errs[i])
		})
	}
	all.Wait()
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
