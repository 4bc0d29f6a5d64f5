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
	return balance.Config{
		Node: b.config.Node, Upstreams: b.config.Wiring.Uses[sut.Web],
		Policy: b.config.Knobs["lb.policy"], Sticky: b.config.Knobs.Bool("lb.sticky"),
		Layer: b.config.Knobs["lb.layer"], Routes: b.config.Wiring.Routes,
		EjectAfter: b.config.Knobs.Int("lb.eject_after"), LogRequests: b.config.Knobs["log.requests"],
		HealthInterval: time.Duration(b.config.Knobs.Float("lb.health_interval") * float64(time.Second)),
		Registry:       b.registry, Log: b.log,
	}
}
