package blob

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// placements are the lists of node names that photos are placed on: the old and the new
// list during a change of members, else one list. Without a list each node owns all photos.
type placements [][]string

// owns reports whether a node is an owner of a photo in one of the lists.
func (p placements) owns(id photos.ID, node string, copies int) bool {
	for _, names := range p {
		if slices.Contains(owners(id, names, copies), node) {
			return true
		}
	}
	return len(p) == 0
}

// owners returns the nodes that should hold the copies of a photo.
func owners(id photos.ID, names []string, copies int) []string {
	return Place(id, names)[:min(copies, len(names))]
}

// holds reports whether this node serves a photo, if it is stored here.
func (h *Handler) holds(id photos.ID) bool {
	return !id.Seeded() || h.placements.Load().owns(id, h.config.Node, h.config.Copies)
}

// SetMembers sets the list of all blob nodes, this one included.
//
// With moving it announces a change: the node serves the seeded photos that either the
// old or the new members place on it. Without moving it completes the change:
//   - It pushes each uploaded object that belongs to other nodes to those of them that
//     lack it, and removes it here. A draining node keeps it.
//   - It deletes, on the new owners, the seeded photos that were deleted here.
//
// SetMembers returns nil when all objects are moved. After an error, call it again with
// the same members.
func (h *Handler) SetMembers(ctx context.Context, members []sut.Peer, moving bool) error {
	h.membersMu.Lock()
	defer h.membersMu.Unlock()
	var after []string
	draining := false
	for _, p := range members {
		if !p.Draining {
			after = append(after, p.Node)
		} else if p.Node == h.config.Node {
			draining = true
		}
	}
	if len(after) == 0 {
		return nil // without members the node serves all photos
	}
	before := h.members
	if !moving && !h.moving && !draining && slices.Equal(after, before) {
		return nil // nothing has changed
	}
	next := placements{after}
	if (moving || draining) && before != nil {
		next = placements{before, after}
	}
	h.setPlacements(next)
	if moving {
		h.moving = true
		return nil
	}
	if before != nil {
		m := rebalance{Handler: h, before: before, after: after, draining: draining, clients: map[string]*Client{}}
		for _, p := range members {
			m.clients[p.Node] = NewClient(ClientConfig{Address: p.Address, Secret: h.config.Secret})
			defer m.clients[p.Node].Close()
		}
		if err := m.run(ctx); err != nil {
			return err
		}
	}
	if !draining {
		h.members, h.moving = after, false
	}
	return nil
}

// setPlacements changes which seeded photos the node serves, and the stored bytes with
// them.
func (h *Handler) setPlacements(next placements) {
	old := h.placements.Swap(&next)
	if h.config.Capacity == 0 {
		return
	}
	gained := func(from, to *placements) int64 {
		return h.config.Dir.size(func(id photos.ID) bool {
			return id.Seeded() &&
				!from.owns(id, h.config.Node, h.config.Copies) && to.owns(id, h.config.Node, h.config.Copies)
		})
	}
	h.stored.Add(gained(old, &next) - gained(&next, old))
}

// rebalance moves objects between nodes after one change of members.
type rebalance struct {
	*Handler
	before, after []string           // node names that photos are placed on
	draining      bool               // this node
	clients       map[string]*Client // by node
}

// concurrentMoves bounds the objects that one node moves at the same time.
const concurrentMoves = 4

// run moves all objects of this node that belong to other nodes.
func (m rebalance) run(ctx context.Context) error {
	seeded := map[photos.ID]bool{} // seeded photos that this node still holds
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(concurrentMoves)
	for o := range m.config.Dir.objects() {
		switch {
		case ctx.Err() != nil:
		case o.id.Seeded():
			seeded[o.id] = true
		case !slices.Contains(owners(o.id, m.after, m.config.Copies), m.config.Node):
			group.Go(func() error { return m.move(ctx, o.id, o.variant) })
		}
	}
	for index := range m.config.Seeded.Photos {
		if id := photos.PhotoID(1+index, m.config.Seeded); !seeded[id] && ctx.Err() == nil {
			group.Go(func() error { return m.propagateDelete(ctx, id) })
		}
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("move objects to other hosts: %w", err)
	}
	return nil
}

// move pushes one object to as many nodes as there are copies, in the order of Place. It
// skips a node that cannot take the object. If this node is among the chosen ones, the
// object stays here as well.
func (m rebalance) move(ctx context.Context, id photos.ID, v photos.Variant) error {
	var failed error
	var pushed []*Client
	copies, stays := 0, m.draining
	for _, name := range Place(id, m.after) {
		if copies == m.config.Copies {
			break
		}
		if name == m.config.Node {
			stays = true
			copies++
			continue
		}
		client := m.clients[name]
		_, err := client.Head(ctx, id, v)
		if errors.Is(err, photos.ErrNotFound) {
			var data []byte
			if data, err = m.config.Dir.Get(ctx, id, v); errors.Is(err, photos.ErrNotFound) {
				break // deleted in the meantime
			}
			if err == nil {
				err = client.Put(ctx, id, v, data)
			}
			pushed = append(pushed, client) // after an error, too: the node may have stored it
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		copies++
	}
	if _, err := m.config.Dir.Head(ctx, id, v); errors.Is(err, photos.ErrNotFound) {
		// A client deleted the object during the push. Its delete may have reached a new
		// owner before the push, which then restored the object.
		for _, client := range pushed {
			if err := ignoreNotFound(client.Delete(ctx, id, v)); err != nil {
				return err
			}
		}
		return nil
	}
	if copies == 0 {
		return failed
	}
	m.moved.Inc()
	if stays {
		return nil
	}
	return ignoreNotFound(m.delete(ctx, id, v))
}

// ignoreNotFound returns the error of a delete, or nil if there was no such object.
func ignoreNotFound(err error) error {
	if errors.Is(err, photos.ErrNotFound) {
		return nil
	}
	return err
}

// propagateDelete deletes a seeded photo, which is not here, on its new owners. They may
// still hold it from the initial data set. Only its previous owners, such as this node,
// know that it was deleted.
func (m rebalance) propagateDelete(ctx context.Context, id photos.ID) error {
	before := owners(id, m.before, m.config.Copies)
	if !slices.Contains(before, m.config.Node) {
		return nil
	}
	for _, name := range owners(id, m.after, m.config.Copies) {
		if slices.Contains(before, name) {
			continue
		}
		for _, v := range photos.AllVariants() {
			if err := ignoreNotFound(m.clients[name].Delete(ctx, id, v)); err != nil {
				return err
			}
		}
	}
	return nil
}
