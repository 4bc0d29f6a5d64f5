// Package node starts each engine of the system under test as a node: it is the only
// package that knows all of them. One file is one engine, and one line of the map of
// engines names it.
//
// What all nodes have in common is in package process, and what operators ask a database
// that has copies in package dbadmin. A node does not know that it is measured, and
// nothing about the topology but the neighbours that it is told of.
package node

import (
	"context"
	"fmt"
	"io"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/haproxy"
	"github.com/stagebench/stagebench/sut/memcached"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/postgres"
	"github.com/stagebench/stagebench/sut/redis"
)

// engine is what realises a role.
type engine struct {
	role  sut.Role
	start process.Start
	// installed says whether a native server is there, and if not, how to get it; nil =
	// the engine is in this binary.
	installed func() error
	version   func() (string, error) // of the files that it writes; databases only
}

func engines() map[sut.Engine]engine {
	return map[sut.Engine]engine{
		sut.App:        {role: sut.Web, start: startApp},
		sut.Files:      {role: sut.Blob, start: startFiles},
		sut.SQLite:     {role: sut.DB, start: startSQLite, version: sqliteVersion},
		sut.Postgres:   {role: sut.DB, start: startPostgres, version: postgresVersion, installed: installed(postgres.Find)},
		sut.RESP:       {role: sut.Cache, start: startRESP},
		sut.Redis:      {role: sut.Cache, start: startRedis, installed: installed(redis.Find)},
		sut.Memcached:  {role: sut.Cache, start: startMemcached, installed: installed(memcached.Find)},
		sut.OwnBalance: {role: sut.Balance, start: startBalance},
		sut.HAProxy:    {role: sut.Balance, start: startHAProxy, installed: installed(haproxy.Find)},
	}
}

// installed says what hinders finding a server.
func installed[T any](find func() (T, error)) func() error {
	return func() error {
		_, err := find()
		return err
	}
}

// Installed says whether the server of a native engine is there, and if not,
// how to get it. An embedded engine always is.
func Installed(name sut.Engine) error {
	if installed := engines()[name].installed; installed != nil {
		return installed()
	}
	return nil
}

// Run is the whole life of a node. ctx ends when it is to drain; in is its
// standard input, out takes the ready line, and logs go to errs.
func Run(ctx context.Context, in io.Reader, out, errs io.Writer) error {
	return process.Run(ctx, in, out, errs, start)
}

// start starts what role and engine ask for.
func start(ctx context.Context, n process.Node) (process.Component, error) {
	if n.Config.Role == sut.Seed { // whatever the engine of the database is
		return seed(ctx, n)
	}
	e, known := engines()[n.Config.Engine]
	if !known || e.role != n.Config.Role {
		return process.Component{}, fmt.Errorf("no engine %q for role %q", n.Config.Engine, n.Config.Role)
	}
	return e.start(ctx, n)
}

// refused says that a wiring is wrong for a node, and that nothing has changed.
func refused(format string, args ...any) error {
	return fmt.Errorf("%w: %w", sut.ErrWiring, fmt.Errorf(format, args...))
}
