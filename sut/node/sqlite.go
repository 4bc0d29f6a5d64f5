package node

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync/atomic"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/dbadmin"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/sqlite"
	"github.com/stagebench/stagebench/sut/store"
)

// sqliteVersion returns the version of the database files.
func sqliteVersion() (string, error) { return sqlite.LibraryVersion, nil }

// startSQLite starts the embedded database.
func startSQLite(ctx context.Context, n process.Node) (c process.Component, err error) {
	listener, err := n.Listen()
	if err != nil {
		return c, err
	}
	var members atomic.Pointer[[]string]
	members.Store(&n.Config.Wiring.Members)
	s := ladder.DBOf(n.Config.Knobs)
	config := sqlite.Config{
		Listener: listener, Dir: n.Config.Dir, Statements: catalogue(), MaxBytes: int64(s.CapacityMB) * 1e6,
		Secret: n.Config.Secret, Log: n.Log,
	}
	if state := n.Config.Replication; state != nil {
		config.Replication = &sqlite.Replication{
			Node: n.Config.Node, State: *state, SyncCopies: s.SyncCopies(), SyncTimeout: s.SyncTimeout, Lag: s.ReplicaLag,
			Member: func(node string) bool { return slices.Contains(*members.Load(), node) },
		}
	}
	server, err := sqlite.New(config)
	if err != nil {
		return c, errors.Join(err, listener.Close())
	}
	died := make(chan error, 2)
	go func() {
		if err := server.Serve(context.WithoutCancel(ctx)); err != nil {
			died <- err
		}
	}()
	operators := n.Operators()
	if n.Config.Replication != nil {
		dbadmin.Add(operators, embedded{server}, sqlite.ErrRefused, n.Config.Secret)
	}
	return withBuckets(n, operators, process.Component{
		Ready: sut.Ready{Address: listener.Addr().String(), Version: server.Version()},
		Died:  died, Stop: server.Shutdown, Operators: operators,
		Rewire: func(_ context.Context, next sut.Wiring) error {
			members.Store(&next.Members)
			return nil
		},
	}), nil
}

// withBuckets adds what moves buckets to the component of a database, if it belongs to a shard.
func withBuckets(n process.Node, operators *http.ServeMux, c process.Component) process.Component {
	if n.Config.Shard == 0 {
		return c
	}
	own := sut.Peer{Node: n.Config.Node, Address: c.Ready.Address, Shard: n.Config.Shard}
	closeAll := dbadmin.AddBuckets(operators, own, n.Config.Secret)
	stop := c.Stop
	c.Stop = func(ctx context.Context) error {
		closeAll()
		return stop(ctx)
	}
	return c
}

// embedded adapts the embedded database to dbadmin.Database. Its status never fails.
type embedded struct{ *sqlite.Server }

// ReplicationStatus implements dbadmin.Database.
func (e embedded) ReplicationStatus(context.Context) (sut.ReplicationStatus, error) {
	return e.Server.ReplicationStatus(), nil
}

// catalogue returns the statements of the store with the types of their parameters and
// columns. SQLite does not have these types, and the PostgreSQL protocol needs them.
func catalogue() []sqlite.Statement {
	var all []sqlite.Statement
	for _, s := range store.Statements() {
		t := sqlite.Statement{SQL: s.SQL, Local: s.SQLite}
		for _, p := range s.Params {
			t.Params = append(t.Params, sqlite.Type(p))
		}
		for _, c := range s.Columns {
			t.Columns = append(t.Columns, sqlite.Column{Name: c.Name, Type: sqlite.Type(c.Type)})
		}
		all = append(all, t)
	}
	return all
}
