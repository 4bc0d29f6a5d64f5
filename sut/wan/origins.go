package wan

import (
	"context"
	"errors"
	"slices"
	"sync"

	"github.com/stagebench/stagebench/sut"
)

// origin is a server behind the network, identified by its address.
type origin struct {
	node, address string

	// Guarded by origins.mu.
	users   int  // connections to it, also those that are being made
	removed bool // it gets no new connections
	down    bool // the last attempt to connect failed
}

// origins is the list of servers behind the network.
type origins struct {
	mu      sync.Mutex
	listed  []*origin
	leaving []*origin     // removed, and still in use
	turn    int           // index in listed of the next connection
	changed chan struct{} // closed when leaving has changed
}

func newOrigins() *origins { return &origins{changed: make(chan struct{})} }

// set replaces the list. After an error nothing has changed.
func (o *origins) set(peers []sut.Peer) error {
	peers = slices.DeleteFunc(slices.Clone(peers), func(p sut.Peer) bool { return p.Draining })
	if err := sut.ValidateOrigins(peers); err != nil {
		return err
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	known := map[string]*origin{}
	for _, old := range slices.Concat(o.listed, o.leaving) {
		known[old.address] = old
		old.removed = true
	}
	o.listed = nil
	for _, p := range peers {
		if known[p.Address] == nil {
			known[p.Address] = &origin{address: p.Address}
		}
		listed := known[p.Address]
		listed.node, listed.removed = p.Node, false
		o.listed = append(o.listed, listed)
	}
	o.leaving = nil
	for _, old := range known {
		if old.removed && old.users > 0 {
			o.leaving = append(o.leaving, old)
		}
	}
	o.announce()
	return nil
}

// announce wakes up waitForRemoved. The caller holds the lock.
func (o *origins) announce() {
	close(o.changed)
	o.changed = make(chan struct{})
}

// waitForRemoved returns when no removed origin is in use, or the error of ctx.
func (o *origins) waitForRemoved(ctx context.Context) error {
	for {
		o.mu.Lock()
		left, changed := len(o.leaving), o.changed
		o.mu.Unlock()
		if left == 0 {
			return nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// acquire returns the next origin in turn that was not tried. The caller must release it. It returns nil when all were
// tried.
func (o *origins) acquire(tried []*origin) *origin {
	o.mu.Lock()
	defer o.mu.Unlock()
	for range o.listed {
		next := o.listed[o.turn%len(o.listed)]
		o.turn = (o.turn + 1) % len(o.listed)
		if !slices.Contains(tried, next) {
			next.users++
			return next
		}
	}
	return nil
}

// release ends one use of an origin.
func (o *origins) release(used *origin) {
	o.mu.Lock()
	defer o.mu.Unlock()
	used.users--
	if used.users == 0 && used.removed {
		o.leaving = slices.DeleteFunc(o.leaving, func(l *origin) bool { return l == used })
		o.announce()
	}
}

// reached notes the result of an attempt to connect. It returns true if it differs from the one before.
func (o *origins) reached(tried *origin, err error) (news bool) {
	if errors.Is(err, context.Canceled) {
		return false // the client left
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	news = tried.down != (err != nil)
	tried.down = err != nil
	return news
}
