package node

import (
	"context"
	"fmt"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/wan"
)

// maxRelayed is the maximum number of connections over the network, if the memory of the node allows so many.
// relayedBytes is the memory of one: what is in transit in both directions.
const (
	maxRelayed   = 10_000
	relayedBytes = 2 * wan.MaxTransitBytes
)

// startRelay starts the relay that stands for the network between users and origin.
func startRelay(_ context.Context, n process.Node) (c process.Component, err error) {
	relay, err := wan.New(wan.Config{
		RTT: ladder.WANOf(n.Config.Knobs).Delay, Origins: originsOf(n.Config.Wiring),
		MaxConns: n.ConnsWithin(relayedBytes, maxRelayed), Log: n.Log,
	})
	if err != nil {
		return c, err
	}
	listener, err := n.Listen()
	if err != nil {
		return c, err
	}
	c.Ready.Address, c.Died, c.Stop = listener.Addr().String(), make(chan error, 2), relay.Shutdown
	c.Operators = n.Operators()
	c.Rewire = func(ctx context.Context, w sut.Wiring) error { return relay.SetOrigins(ctx, originsOf(w)) }
	go func() {
		if err := relay.Serve(listener); err != nil {
			c.Died <- fmt.Errorf("serve clients: %w", err)
		}
	}()
	return c, nil
}
