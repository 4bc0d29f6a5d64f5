package session_test

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/session"
	"github.com/stagebench/stagebench/sut/session/sessiontest"
)

// table is a table of sessions in the memory of the test. paused holds AddSession until it is closed; nil = it does
// not.
type table struct {
	mu     sync.Mutex
	rows   map[string]row
	paused chan struct{}
	adding chan struct{} // gets a value when AddSession waits
	down   atomic.Bool
}

type row struct {
	user      photos.ID
	expiresUS int64
}

func newTable() *table { return &table{rows: map[string]row{}, adding: make(chan struct{}, 1)} }

func (t *table) AddSession(_ context.Context, id string, user photos.ID, expiresUS int64) error {
	if t.down.Load() {
		return photos.ErrUnavailable
	}
	if t.paused != nil {
		t.adding <- struct{}{}
		<-t.paused
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if _, found := t.rows[id]; !found {
		t.rows[id] = row{user, expiresUS}
	}
	return nil
}

func (t *table) Session(_ context.Context, id string) (photos.ID, int64, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	r, found := t.rows[id]
	if t.down.Load() {
		return 0, 0, photos.ErrUnavailable
	}
	if !found {
		return 0, 0, photos.ErrNotFound
	}
	return r.user, r.expiresUS, nil
}

func (t *table) RemoveSession(_ context.Context, id string) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	delete(t.rows, id)
	return nil
}

func (t *table) len() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return len(t.rows)
}

// cluster is web hosts with sessions in their memory, and a table to which they can move.
type cluster struct {
	hosts  []*session.Movable
	memory []*session.Memory
	peers  []sut.Peer
	store  *session.Shared
	table  *table
}

func newCluster(t *testing.T, hosts int, now func() time.Time) *cluster {
	t.Helper()
	c := &cluster{table: newTable()}
	c.store = session.NewShared(c.table, sut.Session, now)
	for i := range hosts {
		name := []string{"web-1", "web-2", "web-3"}[i]
		m := newMemory(t, session.MemoryConfig{Host: name, Now: now})
		movable := session.NewMovable(m, session.Place{})
		c.memory, c.hosts = append(c.memory, m), append(c.hosts, movable)
		c.peers = append(c.peers, peer(t, name, movable.Own()))
	}
	return c
}

// step makes one host take a step of the move.
func (c *cluster) step(t *testing.T, i int, copies, last bool) {
	t.Helper()
	place := session.Place{Store: c.store, Copy: copies}
	if !last {
		place.Owners = session.NewRemote(c.peers, secret, nil)
		t.Cleanup(place.Owners.Close)
	}
	c.hosts[i].Move(place)
	switch {
	case last:
		c.hosts[i].Forget()
	case copies:
		if err := c.hosts[i].CopyAll(t.Context()); err != nil {
			t.Error(err)
		}
	}
}

// At each step, and between the steps of two hosts, every host finds every session, and the remaining life stays.
func TestSessionsMove(t *testing.T) {
	at := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := func() time.Time { return at }
	c := newCluster(t, 3, now)
	tokens := map[string]photos.ID{}
	start := func(i int) {
		t.Helper()
		user := photos.ID(len(tokens) + 1)
		token, _, err := c.hosts[i].Start(t.Context(), user)
		if err != nil {
			t.Fatal(err)
		}
		tokens[token] = user
	}
	for i := range c.hosts {
		for range 10 {
			start(i)
		}
	}
	ends := at.Add(24 * time.Hour)
	at = at.Add(time.Hour)
	for n, s := range [][2]bool{{false, false}, {true, false}, {true, true}} {
		for i := range c.hosts {
			c.step(t, i, s[0], s[1])
			if n == 0 && i < 2 {
				continue // the balancer still keeps users on their host
			}
			for token, user := range tokens {
				for j, host := range c.hosts {
					if got, err := host.User(t.Context(), token); err != nil || got != user {
						t.Fatalf("step %d of host %d: host %d finds user %d, %v, want %d", n, i, j, got, err, user)
					}
				}
			}
			start(i)
		}
	}
	if c.table.len() != len(tokens) {
		t.Errorf("the store has %d sessions, want %d", c.table.len(), len(tokens))
	}
	for i, m := range c.memory {
		if m.Len() != 0 {
			t.Errorf("host %d still has %d sessions in its memory", i, m.Len())
		}
	}
	at = ends
	found := 0
	for token := range tokens {
		if _, err := c.hosts[0].User(t.Context(), token); err == nil {
			found++
		}
	}
	if want := len(tokens) - 30; found != want { // those that started an hour later
		t.Errorf("%d sessions live longer than 24 h after their start, want %d", found, want)
	}
}

// A session that ends while it is copied does not come back, whichever host ends it.
func TestASessionEndsWhileItIsCopied(t *testing.T) {
	for ender := range 2 {
		c := newCluster(t, 2, nil)
		token, _, err := c.hosts[0].Start(t.Context(), 42)
		if err != nil {
			t.Fatal(err)
		}
		for i := range c.hosts {
			c.step(t, i, false, false)
		}
		c.table.paused = make(chan struct{})
		copied := make(chan struct{})
		go func() {
			defer close(copied)
			c.step(t, 0, true, false)
		}()
		<-c.table.adding
		if err := c.hosts[ender].End(t.Context(), token); err != nil {
			t.Fatal(err)
		}
		close(c.table.paused)
		<-copied
		for i, host := range c.hosts {
			if user, err := host.User(t.Context(), token); !errors.Is(err, photos.ErrNotFound) {
				t.Errorf("ended by host %d: host %d finds user %d, %v", ender, i, user, err)
			}
		}
		if c.table.len() != 0 {
			t.Error("the store has the session")
		}
	}
}

// While users log in, look up and log out at all hosts, the sessions move: nothing fails, and nobody is logged out.
func TestSessionsMoveInUse(t *testing.T) {
	c := newCluster(t, 3, nil)
	ctx, cancel := context.WithCancel(t.Context())
	var group sync.WaitGroup
	var lives atomic.Int64
	for i, host := range c.hosts {
		for n := range 3 {
			group.Go(func() {
				for ctx.Err() == nil {
					user := photos.ID(100*i + n + 1)
					token, _, err := host.Start(t.Context(), user)
					for range 5 {
						var got photos.ID
						if err == nil {
							got, err = host.User(t.Context(), token)
						}
						if err != nil || got != user {
							t.Errorf("user %d is %d, %v", user, got, err)
							return
						}
					}
					if err := host.End(t.Context(), token); err != nil {
						t.Error(err)
					}
					if got, err := host.User(t.Context(), token); !errors.Is(err, photos.ErrNotFound) {
						t.Errorf("after its end the session is of user %d, %v", got, err)
					}
					lives.Add(1)
				}
			})
		}
	}
	for _, s := range [][2]bool{{false, false}, {true, false}, {true, true}} {
		for before := lives.Load(); lives.Load() < before+30 && !t.Failed(); {
			if _, err := c.hosts[0].User(t.Context(), "web-9.0"); !errors.Is(err, photos.ErrNotFound) {
				t.Error(err)
			}
		}
		for i := range c.hosts {
			c.step(t, i, s[0], s[1])
		}
	}
	cancel()
	group.Wait()
	if c.table.len() != 0 {
		t.Errorf("%d sessions are left", c.table.len())
	}
}

// A store that is down fails the copy. Meanwhile each session is found where it is, and a missing owner is unavailable.
func TestTheStoreFailsDuringTheMove(t *testing.T) {
	c := newCluster(t, 2, nil)
	token, _, err := c.hosts[0].Start(t.Context(), 42)
	if err != nil {
		t.Fatal(err)
	}
	for i := range c.hosts {
		c.step(t, i, false, false)
	}
	c.table.down.Store(true)
	if err := c.hosts[0].CopyAll(t.Context()); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("copy: %v", err)
	}
	if user, err := c.hosts[0].User(t.Context(), token); err != nil || user != 42 {
		t.Errorf("its own host: user %d, %v", user, err)
	}
	if user, err := c.hosts[1].User(t.Context(), token); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("another host: user %d, %v", user, err)
	}
	c.table.down.Store(false)
	gone := session.NewRemote([]sut.Peer{{Node: "web-1", Address: "127.0.0.1:1"}}, secret, nil)
	defer gone.Close()
	c.hosts[1].Move(session.Place{Store: c.store, Owners: gone})
	if user, err := c.hosts[1].User(t.Context(), token); !errors.Is(err, photos.ErrUnavailable) {
		t.Errorf("without its owner: user %d, %v", user, err)
	}
}

func TestMovableConforms(t *testing.T) {
	for name, copies := range map[string]bool{"in memory": false, "in the store": true} {
		t.Run(name, func(t *testing.T) {
			sessiontest.Run(t, func(t *testing.T, now func() time.Time) sessiontest.Sessions {
				c := newCluster(t, 1, now)
				c.hosts[0].Move(session.Place{Store: c.store, Copy: copies})
				return c.hosts[0]
			})
		})
	}
}
