package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance"
	"github.com/stagebench/stagebench/sut/ladder"
)

func (b birth) startBalance(context.Context) (part, error) {
	balancer, err := balance.New(b.balanceConfig())
	if err != nil {
		return part{}, err
	}
	listener, admin, err := b.listenBoth()
	if err != nil {
		return part{}, err
	}
	h := newHTTPServer()
	go func() {
		if err := balancer.Serve(listener); err != nil {
			h.died <- fmt.Errorf("serve clients: %w", err)
		}
	}()
	h.serve(admin, balancer.Admin())
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: listener.Addr().String(), Admin: admin.Addr().String()},
		died:  h.died,
		// The operators' side goes last: who drains a balancer may look at it.
		stop: func(ctx context.Context) error { return errors.Join(balancer.Shutdown(ctx), h.stop(ctx)) },
	}, nil
}

// balanceConfig is the same for both engines of the role.
func (b birth) balanceConfig() balance.Config {
	s := ladder.LBOf(b.config.Knobs)
	return balance.Config{
		Node: b.config.Node, Upstreams: b.config.Wiring.Uses[sut.Web],
		Policy: s.Policy, Sticky: s.Sticky(), Layer: string(s.Layer), Routes: b.config.Wiring.Routes,
		EjectAfter: s.EjectAfter, LogRequests: ladder.LogsOf(b.config.Knobs).Requests,
		HealthInterval: s.HealthInterval, Registry: b.registry, Log: b.log,
	}
}
