package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/dbadmin"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/postgres"
)

// postgresVersion returns the version of the database files.
func postgresVersion() (string, error) {
	install, err := postgres.Find()
	return install.FilesVersion(), err
}

// Release frees what the kernel keeps for the files of dead nodes in a directory, at any depth. Call it before the
// directory is removed.
func Release(dir string) error { return postgres.ReleaseAll(dir) }

// postgresDeathSignal is the signal that the postmaster gets when its node dies: immediate
// shutdown. After SIGKILL its backends would keep running.
const postgresDeathSignal = syscall.SIGQUIT

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
		Secret: n.Config.Secret, Procs: n.Config.Procs, Log: n.Log,
	}
	if state := n.Config.Replication; state != nil {
		settings := ladder.DBOf(n.Config.Knobs)
		config.Replication = &postgres.Replication{
			Node: n.Config.Node, State: *state, SyncCopies: settings.SyncCopies(), Lag: settings.ReplicaLag,
			Members: n.Config.Wiring.Members,
		}
	}
	s := postgres.New(config)
	if c, err = n.StartNative(ctx, s, postgresDeathSignal); err != nil {
		return c, err
	}
	died := c.Died
	c = c.WithBackground(s.Watch).WithBackground(func(ctx context.Context) { died <- awaitLost(ctx, s) })
	operators := n.Operators()
	if n.Config.Replication != nil {
		c.Rewire = func(ctx context.Context, next sut.Wiring) error { return s.SetMembers(ctx, next.Members) }
		dbadmin.Add(operators, native{s, n, install}, postgres.ErrConflict, n.Config.Secret)
	}
	c.Operators = operators
	return withBuckets(n, operators, c), nil
}

// lostPoll is the time between two checks whether a replica can still follow its primary.
const lostPoll = time.Second

// awaitLost waits until a replica can no longer follow its primary, and returns the
// reason. The node then ends. It fetches a full copy at its next start.
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

// native adapts the native database to dbadmin.Database.
type native struct {
	*postgres.Server
	node    process.Node
	install postgres.Install
}

// LostChanges implements dbadmin.Database.
func (n native) LostChanges(ctx context.Context, name string) (sut.Lost, error) {
	kept, err := n.KeptCopies()
	i := slices.IndexFunc(kept, func(k postgres.KeptCopy) bool { return k.Name == name })
	if i < 0 {
		return sut.Lost{}, errors.Join(err, fmt.Errorf("there is no old copy %q", name))
	}
	lost := sut.Lost{Node: n.node.Config.Node, Copy: name, Epoch: kept[i].Epoch, Changes: []sut.LostChange{}}
	if kept[i].Empty {
		lost.Unknown, lost.Partial = true, sut.NotKept
		return lost, nil
	}
	read, err := n.lostIn(ctx, kept[i])
	if err != nil {
		lost.Unknown, lost.Unread, lost.Partial = true, true, "the old copy could not be read: "+err.Error()
		return lost, nil
	}
	return read, nil
}

// lostIn returns the changes of a kept copy that the present copy lacks. If there are any, it starts a second server on
// the kept copy, and stops it before it returns.
func (n native) lostIn(ctx context.Context, k postgres.KeptCopy) (lost sut.Lost, err error) {
	diverged, err := n.DivergedCopy(ctx, k)
	if err != nil || !diverged.Lost() {
		return sut.Lost{Node: n.node.Config.Node, Copy: k.Name, Epoch: k.Epoch, Changes: []sut.LostChange{}}, err
	}
	second := n.node
	second.Config.Port = 0
	port, err := second.FreePort()
	if err != nil {
		return lost, err
	}
	s := postgres.New(postgres.Config{
		Install: n.install, Name: n.node.Config.Node + "-kept", Dir: k.Dir,
		Listen: net.ParseIP(n.node.Config.Listen), Port: port, Secret: n.node.Config.Secret, Log: n.node.Log,
	})
	c, err := second.StartNative(ctx, s, postgresDeathSignal)
	if err != nil {
		return lost, err
	}
	defer func() { err = errors.Join(err, c.Stop(context.WithoutCancel(ctx))) }()
	return n.LostRows(ctx, diverged, s)
}
