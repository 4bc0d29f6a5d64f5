package node

import (
	"context"
	"net/http"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
)

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
	h.Serve(listener, &http.Server{Handler: host})
	return process.Component{
		Ready: sut.Ready{Address: listener.Addr().String()}, Died: h.Died, Stop: h.Stop,
		Operators: n.Operators(), Rewire: rewire,
	}, nil
}
