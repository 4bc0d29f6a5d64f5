package node

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/conns"
	"github.com/stagebench/stagebench/sut/edge"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
)

// startEdge starts the embedded edge.
func startEdge(_ context.Context, n process.Node) (c process.Component, err error) {
	bound, err := conns.New(n.ConnsWithin(process.HTTPConnBytes, maxClientConns), n.Registry)
	if err != nil {
		return c, err
	}
	e, err := edge.New(edge.Config{EdgeConfig: edgeConfig(n.Config), Log: n.Log, Bound: bound, Full: conns.Refused})
	if err != nil {
		return c, err
	}
	listener, err := n.Listen()
	if err != nil {
		return c, err
	}
	c.Ready.Address, c.Died, c.Stop = listener.Addr().String(), make(chan error, 2), e.Shutdown
	go func() {
		if err := e.Serve(listener); err != nil {
			c.Died <- fmt.Errorf("serve clients: %w", err)
		}
	}()
	return withEdge(n, c, e), nil
}

// site is the authority of all requests: the service has one name, whichever edge a client uses.
const site = "photos"

// edgeConfig returns the configuration of an edge, the same for every engine.
func edgeConfig(config sut.NodeConfig) sut.EdgeConfig {
	s := ladder.EdgeOf(config.Knobs)
	return sut.EdgeConfig{
		Node: config.Node, Origins: originsOf(config.Wiring), Site: site, TTL: s.TTL, MaxBytes: s.Bytes(), Admit: s.Admit,
	}
}

// originsOf returns what is behind an edge or a network: another network, balancers, or web hosts.
func originsOf(w sut.Wiring) []sut.Peer {
	for _, role := range []sut.Role{sut.WAN, sut.Balance, sut.Web} {
		if peers := w.Active(role); len(peers) > 0 {
			return peers
		}
	}
	return nil
}

// withEdge adds metrics, purges and changes of the origins to a component.
func withEdge(n process.Node, c process.Component, e sut.EdgeServer) process.Component {
	n.Registry.MustRegister(newEdgeCollector(e))
	mux := n.Operators()
	mux.HandleFunc("POST "+sut.PurgePath, func(w http.ResponseWriter, r *http.Request) { purge(w, r, e) })
	c.Operators = mux
	c.Rewire = func(ctx context.Context, w sut.Wiring) error { return e.SetOrigins(ctx, originsOf(w)) }
	return c
}

// purge answers a request of an operator to purge.
func purge(w http.ResponseWriter, r *http.Request, e sut.EdgeServer) {
	var p sut.Purge
	err := process.DecodeStrictly(r.Body, &p)
	if err == nil && len(p.URLs)+len(p.Groups) == 0 {
		err = errors.New("nothing to purge")
	}
	if err != nil {
		process.SendError(w, http.StatusBadRequest, err,
			`send {"urls": ["/img/17/thumb.jpg?v=1"]} or {"groups": ["photo-17"]}`)
		return
	}
	switch err := e.Purge(r.Context(), p); {
	case errors.Is(err, sut.ErrPurge):
		process.SendError(w, http.StatusNotImplemented, err, "use edge.engine=edge")
	case err != nil:
		process.SendError(w, http.StatusInternalServerError, err, "")
	default:
		w.WriteHeader(http.StatusNoContent)
	}
}
