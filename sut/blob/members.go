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

// placements are names of hosts that objects may be placed on, one after the other.
type placements [][]string

// owns reports whether one of the placements has a host among those of a photo. Without
// any, each host has all photos.
func (p placements) owns(id photos.ID, node string, copies int) bool {
	for _, names := range p {
		if slices.Contains(owners(id, names, copies), node) {
			return true
		}
	}
	return len(p) == 0
}

// owners are the hosts that a photo's copies belong to.
func owners(id photos.ID, names []string, copies int) []string {
	return Place(id, names)[:min(copies, len(names))]
}

// holds reports whether a photo may be on this host.
func (h *Handler) holds(id photos.ID) bool {
	return !id.Seeded() || h.placements.Load().owns(id, h.config.Node, h.config.Copies)
}

// SetMembers tells the host which hosts there are, itself included. While keys move
// it shows the photos of the data set that it has by the members before or by these.
// Afterwards it hands over: each uploaded object that is not its own is pushed to those
// whose it is and who lack it, and removed here, unless the host is draining; and it
// tells new owners which photos of the data set have been deleted. When it returns nil,
// all is handed over; after an error the same members may be set again.
func (h *Handler) SetMembers(ctx context.Context, members []sut.Peer, moving bool) error {
	h.setting.Lock()
	defer h.setting.Unlock()
	var names []string
	draining := false
	for _, p := range members {
		if !p.Draining {
			names = append(names, p.Node)
		} else if p.Node == h.config.Node {
			draining = true
		}
	}
	if len(names) == 0 {
		return nil // it is told of nobody, and has all photos
	}
	before := h.settled
	if !moving && !h.moving && !draining && slices.Equal(names, before) {
		return nil // it is told of something else
	}
	shown := placements{names}
	if (moving || draining) && before != nil {
		shown = placements{before, names}
	}
	h.show(shown)
	if moving {
		h.moving = true
		return nil
	}
	if before != nil {
		m := handOver{Handler: h, before: before, names: names, draining: draining, clients: map[string]*Client{}}
		for _, p := range members {
			m.clients[p.Node] = NewClient(ClientConfig{Address: p.Address})
			defer m.clients[p.Node].Close()
		}
		if err := m.run(ctx); err != nil {
			return err
		}
	}
	if !draining {
		h.settled, h.moving = names, false
	}
	return nil
}

// show changes which photos of the data set may be on this host.
func (h *Handler) show(next placements) {
	old := h.placements.Swap(&next)
	if h.config.Capacity == 0 {
		return
	}
	change := func(from, to *placements) int64 {
		return h.config.Dir.size(func(id photos.ID) bool {
			return id.Seeded() &&
				!from.owns(id, h.config.Node, h.config.Copies) && to.owns(id, h.config.Node, h.config.Copies)
		})
	}
	h.stored.Add(change(old, &next) - change(&next, old))
}

// handOver is one change of members, as far as this host has to do with it.
type handOver struct {
	*Handler
	before, names []string // of hosts that objects are placed on
	draining      bool
	clients       map[string]*Client // by node
}

// pushes is how many objects are handed over at a time.
const pushes = 4

func (m handOver) run(ctx context.Context) error {
	seeded := map[photos.ID]bool{} // those that are there still
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pushes)
	for o := range m.config.Dir.objects() {
		switch {
		case ctx.Err() != nil:
		case o.id.Seeded():
			seeded[o.id] = true
		case !slices.Contains(owners(o.id, m.names, m.config.Copies), m.config.Node):
			group.Go(func() error { return m.move(ctx, o.id, o.variant) })
		}
	}
	for index := range m.config.Seeded.Photos {
		if id := photos.PhotoID(1+index, m.config.Seeded); !seeded[id] && ctx.Err() == nil {
			group.Go(func() error { return m.forget(ctx, id) })
		}
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("hand over: %w", err)
	}
	return nil
}

// move hands over one object. What an owner cannot take goes to the next host in the
// photo's order, which may be this one: then it stays.
func (m handOver) move(ctx context.Context, id photos.ID, v photos.Variant) error {
	var refused error
	var pushed []*Client
	taken, stays := 0, m.draining
	for _, name := range Place(id, m.names) {
		if taken == m.config.Copies {
			break
		}
		if name == m.config.Node {
			stays = true
			taken++
			continue
		}
		client := m.clients[name]
		_, err := client.Head(ctx, id, v)
		if errors.Is(err, photos.ErrNotFound) {
			var data []byte
			if data, err = m.config.Dir.Get(ctx, id, v); errors.Is(err, photos.ErrNotFound) {
				return nil // it has been deleted
			}
			if err == nil {
				err = client.Put(ctx, id, v, data)
			}
			pushed = append(pushed, client) // maybe, when it has not answered
		}
		if err != nil {
			refused = errors.Join(refused, err)
			continue
		}
		taken++
	}
	if taken == 0 {
		return refused
	}
	m.moved.Inc()
	if _, err := m.config.Dir.Head(ctx, id, v); errors.Is(err, photos.ErrNotFound) {
		// Whoever has deleted it meanwhile may have asked the new owner before it was there.
		for _, client := range pushed {
			if err := gone(client.Delete(ctx, id, v)); err != nil {
				return err
			}
		}
		return nil
	}
	if stays {
		return nil
	}
	return gone(m.delete(ctx, id, v))
}

// gone is why an object may not be gone after it was deleted.
func gone(deleted error) error {
	if errors.Is(deleted, photos.ErrNotFound) {
		return nil
	}
	return deleted
}

// forget has the new owners of a photo of the data set delete it, which they may hold
// from the beginning, when this host knows that it has been deleted.
func (m handOver) forget(ctx context.Context, id photos.ID) error {
	before := owners(id, m.before, m.config.Copies)
	if !slices.Contains(before, m.config.Node) {
		return nil
	}
	for _, name := range owners(id, m.names, m.config.Copies) {
		if slices.Contains(before, name) {
			continue
		}
		for _, v := range photos.AllVariants() {
			if err := gone(m.clients[name].Delete(ctx, id, v)); err != nil {
				return err
			}
		}
	}
	return nil
}
