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
	balancer, err := balance.New(balance.Config{Balancing: b.balancing(), Log: b.log})
	if err != nil {
		return part{}, err
	}
	operators, err := balance.Admin(b.registry, balancer)
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
	h.serve(admin, operators)
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: listener.Addr().String(), Admin: admin.Addr().String()},
		died:  h.died,
		// The operators' side goes last: who drains a balancer may look at it.
		stop: func(ctx context.Context) error { return errors.Join(balancer.Shutdown(ctx), h.stop(ctx)) },
	}, nil
}

// balancing is the same for both engines of the role.
func (b birth) balancing() sut.Balancing {
	s := ladder.LBOf(b.config.Knobs)
	return sut.Balancing{
		Node: b.config.Node, Membership: sut.Membership{Upstreams: b.config.Wiring.Uses[sut.Web], Routes: b.config.Wiring.Routes},
		Policy: s.Policy, Sticky: s.Sticky(), Layer: string(s.Layer),
		EjectAfter: s.EjectAfter, LogRequests: ladder.LogsOf(b.config.Knobs).Requests,
		HealthInterval: s.HealthInterval,
	}
}
