package node

import (
	"context"
	"errors"
	"net/http"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/conns"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
)

// maxBlobConns is the maximum number of connections of a blob host, if its memory allows so many. Web hosts send one
// request at a time over a connection.
const maxBlobConns = 2048

// startFiles starts the blob store.
func startFiles(ctx context.Context, n process.Node) (c process.Component, err error) {
	dir, err := blob.OpenDir(n.Config.Dir)
	if err != nil {
		return c, err
	}
	s := ladder.BlobOf(n.Config.Knobs)
	seeded, _ := n.Config.Data.Counts() // zero counts without a data set
	host := blob.NewHandler(blob.HandlerConfig{
		Dir: dir, Log: n.Log, Registry: n.Registry, Node: n.Config.Node, Secret: n.Config.Secret, Copies: s.Copies,
		Seeded:   seeded,
		Capacity: int64(s.CapacityMB) * 1_000_000, LogRequests: ladder.LogsOf(n.Config.Knobs).Requests,
	})
	rewire := func(ctx context.Context, w sut.Wiring) error {
		return host.SetMembers(ctx, w.Uses[sut.Blob], w.Rebalancing)
	}
	if err := rewire(ctx, n.Config.Wiring); err != nil {
		return c, err
	}
	listener, err := n.Listen()
	if err != nil {
		return c, err
	}
	h := process.NewHTTP()
	bound, err := conns.New(n.ConnsWithin(process.HTTPConnBytes, maxBlobConns), n.Registry)
	if err != nil {
		return c, errors.Join(err, listener.Close())
	}
	h.Serve(listener, &http.Server{Handler: host}, bound)
	return process.Component{
		Ready: sut.Ready{Address: listener.Addr().String()}, Died: h.Died, Stop: h.Stop,
		Operators: n.Operators(), Rewire: rewire,
	}, nil
}
