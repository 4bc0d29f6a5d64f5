package node

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/session"
	"github.com/stagebench/stagebench/sut/store"
)

// sessions is where a web host finds sessions. Changes of the wiring are never concurrent, so most fields have no lock.
type sessions struct {
	node    process.Node
	records *store.Store
	memory  *session.Memory // nil = this host has no sessions in its memory
	used    *session.Movable
	store   atomic.Value // ladder.SessionStore

	remote *session.Remote // asks other hosts for sessions in their memory; nil = not needed
	resp   *session.RESP   // nil = there is no session host
	shared *session.Shared // nil = sessions are in the memory of web hosts

	expires func() // makes background remove sessions that have ended
	wanted  chan struct{}
}

// placeSessions returns the sessions of a web host.
func placeSessions(n process.Node, records *store.Store) (*sessions, error) {
	s := &sessions{
		node: n, records: records, wanted: make(chan struct{}),
	}
	s.store.Store(ladder.SessionOf(n.Config.Knobs).Store)
	s.expires = sync.OnceFunc(func() { close(s.wanted) })
	if s.current() == ladder.SessionMemory && n.Config.Service != sut.Uploads {
		var err error
		config := session.MemoryConfig{Host: n.Config.Node, Registry: n.Registry}
		if s.memory, err = session.NewMemory(config); err != nil {
			return nil, err
		}
	}
	s.used = session.NewMovable(s.memory, session.Place{})
	if err := s.check(n.Config.Wiring); err != nil {
		return nil, err
	}
	return s, s.rewire(context.Background(), n.Config.Wiring) // waits for nothing: there are no earlier requests
}

// current returns where new sessions of the system are.
func (s *sessions) current() ladder.SessionStore { return s.store.Load().(ladder.SessionStore) }

// storeIn returns the store that a wiring names, or else the one of the configuration.
func (s *sessions) storeIn(w sut.Wiring) ladder.SessionStore {
	if w.Sessions != nil {
		return ladder.SessionStore(w.Sessions.Store)
	}
	return ladder.SessionOf(s.node.Config.Knobs).Store
}

// check returns an error if the sessions cannot use a wiring.
func (s *sessions) check(next sut.Wiring) error {
	hosts := next.Active(sut.Session)
	switch wanted := s.storeIn(next); {
	case wanted == ladder.SessionRESP && len(hosts) != 1:
		return fmt.Errorf("%w: %d %s nodes: want one", sut.ErrWiring, len(hosts), sut.Session)
	case !slices.Contains([]ladder.SessionStore{ladder.SessionMemory, ladder.SessionRESP, ladder.SessionSQL}, wanted):
		return fmt.Errorf("%w: unknown store of sessions %q", sut.ErrWiring, wanted)
	case s.used.Place().Copy && wanted != s.current():
		return fmt.Errorf("%w: the sessions are in the store %s, and cannot leave it", sut.ErrWiring, s.current())
	}
	return nil
}

// rewire gives the sessions their new hosts, and moves them if the wiring says so.
func (s *sessions) rewire(ctx context.Context, next sut.Wiring) error {
	place := session.Place{Copy: s.storeIn(next) != ladder.SessionMemory}
	owners := next.Active(sut.Web) // an upload host has them while sessions are in memory
	if move := next.Sessions; move != nil {
		place.Copy = move.Copy || s.memory == nil && s.node.Config.Service != sut.Uploads
		owners = slices.DeleteFunc(slices.Clone(move.Owners), func(p sut.Peer) bool { return p.Node == s.node.Config.Node })
	}
	if err := s.open(ctx, next); err != nil {
		return err
	}
	place.Store = s.shared
	if len(owners) > 0 {
		if s.remote == nil {
			s.remote = session.NewRemote(nil, s.node.Config.Secret, app.RequestID)
		}
		place.Owners = s.remote
	}
	if s.remote != nil {
		if err := s.remote.SetPeers(ctx, owners); err != nil {
			return err
		}
	}
	s.used.Move(place)
	if next.Sessions == nil || !next.Sessions.Copy {
		return nil
	}
	if len(next.Sessions.Owners) == 0 {
		s.used.Forget()
		return nil
	}
	return s.used.CopyAll(ctx)
}

// open opens the store of a wiring.
func (s *sessions) open(ctx context.Context, next sut.Wiring) error {
	switch wanted := s.storeIn(next); {
	case wanted == ladder.SessionRESP && s.resp != nil:
		if err := s.resp.SetHost(ctx, next.Active(sut.Session)[0]); err != nil {
			return err
		}
	case wanted == ladder.SessionRESP:
		cache.LogTo(s.node.Log) // both use the same client library, which has one log
		s.resp = session.NewRESP(session.RESPConfig{Host: next.Active(sut.Session)[0], Secret: s.node.Config.Secret})
		s.shared = session.NewShared(s.resp, sut.Session, nil)
	case wanted == ladder.SessionSQL && s.shared == nil:
		s.shared = session.NewShared(s.records, sut.DB, nil)
		s.expires()
	case wanted == ladder.SessionMemory: // also after a move that did not begin to copy
		s.shared = nil
		s.closeRESP()
	}
	s.store.Store(s.storeIn(next))
	return nil
}

// expireInterval is the time between two batches of sessions in which a web host looks for those that have ended. So a
// host looks at 100,000 sessions in an hour and a half.
const expireInterval = 10 * time.Second

// background removes sessions that have ended until ctx ends, if the store does not do that itself.
func (s *sessions) background(ctx context.Context) {
	select {
	case <-s.wanted:
	case <-ctx.Done():
		return
	}
	session.Expire(ctx, s.records, expireInterval, func(err error) {
		s.node.Log.Error("cannot remove sessions that have ended", "error", err.Error())
	})
}

func (s *sessions) closeRESP() {
	if s.resp != nil {
		s.resp.Close()
		s.resp = nil
	}
}

// close ends the connections to other hosts.
func (s *sessions) close() {
	s.closeRESP()
	if s.remote != nil {
		s.remote.Close()
	}
}
