package node

import (
	"context"
	"errors"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/session"
	"github.com/stagebench/stagebench/sut/store"
)

// sessions is where a web host finds sessions. The fields that its session.store does not need are nil.
type sessions struct {
	used    app.Sessions
	memory  *session.Memory // sessions of this host
	remote  *session.Remote // sessions in the memory of the read hosts; only an upload host has it
	resp    *session.RESP   // sessions of the session host
	expired func(context.Context)
}

// placeSessions returns the sessions of a web host.
func placeSessions(n process.Node, records *store.Store) (s sessions, err error) {
	config := n.Config
	switch placed := ladder.SessionOf(config.Knobs).Store; {
	case placed == ladder.SessionRESP:
		host, err := sessionHost(config.Wiring)
		if err != nil {
			return s, err
		}
		cache.LogTo(n.Log) // both use the same client library, which has one log
		s.resp = session.NewRESP(session.RESPConfig{Host: host, Secret: config.Secret})
		s.used = session.NewShared(s.resp, sut.Session, nil)
	case placed == ladder.SessionSQL:
		s.used = session.NewShared(records, sut.DB, nil)
		s.expired = func(ctx context.Context) {
			session.Expire(ctx, records, expireInterval, func(err error) {
				n.Log.Error("cannot remove sessions that have ended", "error", err.Error())
			})
		}
	case config.Service == sut.Uploads:
		s.remote = session.NewRemote(config.Wiring.Active(sut.Web), config.Secret, app.RequestID)
		s.used = s.remote
	default:
		s.memory, err = session.NewMemory(session.MemoryConfig{Host: config.Node, Registry: n.Registry})
		s.used = s.memory
	}
	return s, err
}

// expireInterval is the time between two batches of sessions in which a web host looks for those that have ended. So a
// host looks at 100,000 sessions in an hour and a half.
const expireInterval = 10 * time.Second

// sessionHost returns the session host of a wiring.
func sessionHost(w sut.Wiring) (sut.Peer, error) {
	hosts := w.Active(sut.Session)
	if len(hosts) != 1 {
		return sut.Peer{}, rejected("%d %s nodes: want one", len(hosts), sut.Session)
	}
	return hosts[0], nil
}

// background removes sessions that have ended until ctx ends, where the store does not do that itself.
func (s sessions) background(ctx context.Context) {
	if s.expired != nil {
		s.expired(ctx)
	}
}

// check returns an error if the sessions cannot use a wiring.
func (s sessions) check(next sut.Wiring) error {
	if s.resp == nil {
		return nil
	}
	_, err := sessionHost(next)
	return err
}

// rewire gives the sessions their new hosts.
func (s sessions) rewire(ctx context.Context, next sut.Wiring) error {
	var errs []error
	if s.resp != nil {
		host, err := sessionHost(next)
		if err != nil {
			return err
		}
		errs = append(errs, s.resp.SetHost(ctx, host))
	}
	if s.remote != nil {
		errs = append(errs, s.remote.SetPeers(ctx, next.Active(sut.Web)))
	}
	return errors.Join(errs...)
}

// close ends the connections to other hosts.
func (s sessions) close() {
	if s.resp != nil {
		s.resp.Close()
	}
	if s.remote != nil {
		s.remote.Close()
	}
}
