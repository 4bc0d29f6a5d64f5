package session

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/sut/photos"
)

// Movable is the sessions of a web host that can move out of the memory of the web hosts while they are in use. At any
// time it finds each session that some host has: in its own memory, in the store, or at the host that the token names.
type Movable struct {
	memory *Memory // nil = this host has no sessions in its memory

	// mu is held for reading while a session starts, so that none starts in memory after Move has returned.
	mu    sync.RWMutex
	place Place
}

// Place is where a Movable finds sessions that are not in its own memory.
type Place struct {
	Store  *Shared // nil = there is no store
	Owners *Remote // other hosts that may have sessions in their memory; nil = there are none
	Copy   bool    // new sessions are in the store
}

// NewMovable returns the sessions of a host. A host without memory needs a store or owners.
func NewMovable(memory *Memory, place Place) *Movable {
	return &Movable{memory: memory, place: place}
}

// Move changes the place. Afterwards each session that this host starts is in the new place.
func (m *Movable) Move(place Place) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.place = place
}

// Place returns the place.
func (m *Movable) Place() Place {
	m.mu.RLock()
	defer m.mu.RUnlock()
	return m.place
}

// Start logs a user in.
func (m *Movable) Start(ctx context.Context, user photos.ID) (string, time.Time, error) {
	m.mu.RLock()
	place := m.place
	if m.memory != nil && !place.Copy {
		defer m.mu.RUnlock()
		return m.memory.Start(ctx, user)
	}
	m.mu.RUnlock()
	if place.Store == nil {
		return "", time.Time{}, errors.New("session: this host stores no sessions, so it cannot start one")
	}
	return place.Store.Start(ctx, user)
}

// User returns the user of a session.
func (m *Movable) User(ctx context.Context, token string) (photos.ID, error) {
	place := m.Place()
	looks := make([]Lookup, 0, 4)
	if m.memory != nil {
		looks = append(looks, m.memory)
	}
	if place.Store != nil {
		looks = append(looks, place.Store)
	}
	if place.Owners != nil {
		looks = append(looks, place.Owners)
		if place.Store != nil {
			looks = append(looks, place.Store) // the owner may have copied the session and forgotten it since the first look
		}
	}
	for _, look := range looks {
		if user, err := look.User(ctx, token); !errors.Is(err, photos.ErrNotFound) {
			return user, err
		}
	}
	return 0, fmt.Errorf("session: %w", photos.ErrNotFound)
}

// End logs a user out. An unknown session is not an error. The store comes last, because a host that copies the session
// meanwhile looks into its memory afterwards.
func (m *Movable) End(ctx context.Context, token string) error {
	place := m.Place()
	if place.Owners != nil {
		if err := place.Owners.End(ctx, token); err != nil {
			return err
		}
	}
	return m.Own().End(ctx, token)
}

// Own returns the sessions of this host, for the Handler that answers other hosts.
func (m *Movable) Own() Owner { return own{m} }

// own is the sessions in the memory of a host that has a Movable.
type own struct{ *Movable }

// User returns the user of a session in the memory of this host. If there is a store, the session is in it afterwards.
func (o own) User(ctx context.Context, token string) (photos.ID, error) {
	if o.memory == nil {
		return 0, fmt.Errorf("session: %w", photos.ErrNotFound)
	}
	held, found := o.memory.held(token)
	if !found {
		return 0, fmt.Errorf("session: %w", photos.ErrNotFound)
	}
	if store := o.Place().Store; store != nil {
		if err := o.copy(ctx, store, held); err != nil {
			return 0, err
		}
	}
	return held.user, nil
}

// End ends a session in the memory of this host, and in the store.
func (o own) End(ctx context.Context, token string) error {
	if o.memory != nil {
		if err := o.memory.End(ctx, token); err != nil {
			return err
		}
	}
	if store := o.Place().Store; store != nil {
		return store.End(ctx, token)
	}
	return nil
}

// copiers is the number of sessions that a host copies at a time. More would take the time of users' requests.
const copiers = 4

// CopyAll copies all sessions in the memory of this host into the store. Each keeps its token and its remaining life.
func (m *Movable) CopyAll(outer context.Context) error {
	store := m.Place().Store
	if m.memory == nil || store == nil {
		return nil
	}
	group, ctx := errgroup.WithContext(outer)
	group.SetLimit(copiers)
	for _, h := range m.memory.all() {
		if ctx.Err() != nil {
			break
		}
		group.Go(func() error { return m.copy(ctx, store, h) })
	}
	if err := group.Wait(); err != nil {
		return fmt.Errorf("copy the sessions: %w", err)
	}
	return outer.Err()
}

// copy copies a session into the store. A session that ends meanwhile is not there afterwards: End removes it from the
// memory first and from the store last, and copy does it the other way round.
func (m *Movable) copy(ctx context.Context, store *Shared, h held) error {
	if err := store.Adopt(ctx, h.token, h.user, h.expires); err != nil {
		return err
	}
	if _, found := m.memory.held(h.token); !found {
		return store.End(ctx, h.token)
	}
	m.memory.noteCopied(h.token)
	return nil
}

// Forget removes all sessions from the memory of this host. They must be in the store.
func (m *Movable) Forget() {
	if m.memory != nil {
		m.memory.forget()
	}
}
