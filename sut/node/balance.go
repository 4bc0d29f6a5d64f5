package node

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance"
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
	return sut.Balancing{
		Node: b.config.Node, Membership: sut.Membership{Upstreams: b.config.Uses[sut.Web], Routes: b.config.Routes},
		Policy: b.config.Knobs["lb.policy"], Sticky: b.config.Knobs.Bool("lb.sticky"), Layer: b.config.Knobs["lb.layer"],
		EjectAfter: b.config.Knobs.Int("lb.eject_after"), LogRequests: b.config.Knobs["log.requests"],
		HealthInterval: time.Duration(b.config.Knobs.Float("lb.health_interval") * float64(time.Second)),
	}
}
