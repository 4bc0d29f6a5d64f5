package node

import (
	"context"
	"errors"
	"net"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/dbadmin"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/postgres"
)

// postgresVersion is the version of the files of the database.
func postgresVersion() (string, error) {
	install, err := postgres.Find()
	return install.Version, err
}

// A postmaster that dies by SIGKILL would leave its backends behind; SIGQUIT is its
// immediate shutdown.
const postgresDeath = syscall.SIGQUIT

// startPostgres starts the native database.
func startPostgres(ctx context.Context, n process.Node) (c process.Component, err error) {
	install, err := postgres.Find()
	if err != nil {
		return c, err
	}
	port, err := n.FreePort()
	if err != nil {
		return c, err
	}
	config := postgres.Config{
		Install: install, Name: n.Config.Node, Dir: n.Config.Dir, Listen: net.ParseIP(n.Config.Listen), Port: port,
		Procs: n.Config.Procs, Log: n.Log,
	}
	if told := n.Config.Replication; told != nil {
		settings := ladder.DBOf(n.Config.Knobs)
		config.Replication = &postgres.Replication{
			Node: n.Config.Node, State: *told, SyncCopies: settings.SyncCopies(), Lag: settings.ReplicaLag,
		}
	}
	s := postgres.New(config)
	if c, err = n.StartNative(ctx, s, postgresDeath); err != nil {
		return c, err
	}
	died := c.Died
	c = c.Beside(s.Watch).Beside(func(ctx context.Context) { died <- awaitLost(ctx, s) })
	operators := n.Operators()
	if n.Config.Replication != nil {
		dbadmin.Add(operators, native{s, n, install}, postgres.ErrConflict, n.Config.Dir)
	}
	c.Operators = operators
	return c, nil
}

// lostPoll is how often a replica is asked whether it can follow at all.
const lostPoll = time.Second

// awaitLost returns why a replica cannot follow its primary any more, when that is
// so: the node ends then, and fetches the whole anew when it is started again.
func awaitLost(ctx context.Context, s *postgres.Server) error {
	tick := time.NewTicker(lostPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
			if reason := s.Lost(); reason != "" {
				return errors.New(reason)
			}
		}
	}
}

// native is the native database as operators ask it.
type native struct {
	*postgres.Server
	node    process.Node
	install postgres.Install
}

// LostChanges implements dbadmin.Database. It starts a server on the copy that was
// kept, for as long as it is asked.
func (n native) LostChanges(ctx context.Context) (lost sut.Lost, err error) {
	kept, err := n.KeptCopy(ctx)
	if err != nil || kept == nil {
		return sut.Lost{Node: n.node.Config.Node, Changes: []sut.LostChange{}}, err
	}
	beside := n.node
	beside.Config.Port = 0
	port, err := beside.FreePort()
	if err != nil {
		return lost, err
	}
	s := postgres.New(postgres.Config{
		Install: n.install, Name: n.node.Config.Node + "-kept", Dir: kept.Dir,
		Listen: net.ParseIP(n.node.Config.Listen), Port: port, Log: n.node.Log,
	})
	c, err := beside.StartNative(ctx, s, postgresDeath)
	if err != nil {
		return lost, err
	}
	defer func() { err = errors.Join(err, c.Stop(context.WithoutCancel(ctx))) }()
	return n.LostFrom(ctx, kept, s)
}
