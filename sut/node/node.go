// Package node starts each engine of the system under test as a node. It is the only
// package that imports all engines. Each engine has one file here and one line in the
// map of engines.
//
// Package process has the code that all nodes share. Package dbadmin has the operator
// endpoints of replicated databases. A node does not know that it is measured. It knows
// only the part of the topology that its wiring lists.
package node

import (
	"context"
	"fmt"
	"io"
	"slices"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/edge"
	"github.com/stagebench/stagebench/sut/haproxy"
	"github.com/stagebench/stagebench/sut/memcached"
	"github.com/stagebench/stagebench/sut/natsserver"
	"github.com/stagebench/stagebench/sut/nginx"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/postgres"
	"github.com/stagebench/stagebench/sut/redis"
	"github.com/stagebench/stagebench/sut/varnish"
)

// engine is what realises a role, or several.
type engine struct {
	roles roles
	start process.Start
	// installed returns an error that says how to install a missing native server; nil =
	// the engine is in this binary.
	installed func() error
	version   func() (string, error) // version of the file format; databases only
	// differences lists how the engine differs from what the kit of its role asks; nil = not at all.
	differences func() []sut.Difference
}

// roles are the roles that one engine can realise.
type roles []sut.Role

func engines() map[sut.Engine]engine {
	return map[sut.Engine]engine{
		sut.App:    {roles: roles{sut.Web}, start: startApp},
		sut.Files:  {roles: roles{sut.Blob}, start: startFiles},
		sut.SQLite: {roles: roles{sut.DB}, start: startSQLite, version: sqliteVersion},
		sut.Postgres: {
			roles: roles{sut.DB}, start: startPostgres, version: postgresVersion, installed: installed(postgres.Find),
		},
		sut.RESP:       {roles: roles{sut.Cache, sut.Session}, start: startRESP},
		sut.Redis:      {roles: roles{sut.Cache, sut.Session}, start: startRedis, installed: installed(redis.Find)},
		sut.Memcached:  {roles: roles{sut.Cache}, start: startMemcached, installed: installed(memcached.Find)},
		sut.OwnBalance: {roles: roles{sut.Balance}, start: startBalance},
		sut.HAProxy:    {roles: roles{sut.Balance}, start: startHAProxy, installed: installed(haproxy.Find)},
		sut.OwnEdge:    {roles: roles{sut.Edge}, start: startEdge, differences: edge.Differences},
		sut.Varnish: {
			roles: roles{sut.Edge}, start: startVarnish, installed: installed(varnish.Find), differences: varnish.Differences,
		},
		sut.Nginx: {
			roles: roles{sut.Edge}, start: startNginx, installed: installed(nginx.Find), differences: nginx.Differences,
		},
		sut.JetStream: {roles: roles{sut.Queue}, start: startJetStream},
		sut.NATSServer: {
			roles: roles{sut.Queue}, start: startNATSServer, installed: installed(natsserver.Find),
		},
		sut.Processor: {roles: roles{sut.Worker}, start: startWorker},
		sut.Relay:     {roles: roles{sut.WAN}, start: startRelay},
	}
}

// installed turns a function that finds a server into a check.
func installed[T any](find func() (T, error)) func() error {
	return func() error {
		_, err := find()
		return err
	}
}

// Installed returns an error that says how to install the native server of an engine, if
// it is missing. It returns nil for an embedded engine.
func Installed(name sut.Engine) error {
	if installed := engines()[name].installed; installed != nil {
		return installed()
	}
	return nil
}

// Differences lists how an engine differs from what the kit of its role asks; nil = not at all.
func Differences(name sut.Engine) []sut.Difference {
	if differences := engines()[name].differences; differences != nil {
		return differences()
	}
	return nil
}

// Run runs a node until its end. The node drains when ctx ends. in is its standard
// input, out takes the ready line, and errs takes the log.
func Run(ctx context.Context, in io.Reader, out, errs io.Writer) error {
	return process.Run(ctx, in, out, errs, start)
}

// start starts the engine of a node.
func start(ctx context.Context, n process.Node) (process.Component, error) {
	if n.Config.Role == sut.Seed { // the seeder is the same for every database engine
		return seed(ctx, n)
	}
	e, known := engines()[n.Config.Engine]
	if !known || !slices.Contains(e.roles, n.Config.Role) {
		return process.Component{}, fmt.Errorf("no engine %q for role %q", n.Config.Engine, n.Config.Role)
	}
	return e.start(ctx, n)
}

// rejected returns the error for a wiring that the node cannot use. The caller must not
// have changed anything.
func rejected(format string, args ...any) error {
	return fmt.Errorf("%w: %w", sut.ErrWiring, fmt.Errorf(format, args...))
}
