package node

import (
	"context"
	"errors"
	"fmt"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance"
	"github.com/stagebench/stagebench/sut/conns"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
)

// maxClientConns is the maximum number of connections of a balancer's clients, if its memory allows so many.
// tunnelBytes is the memory of a connection at layer 4: goroutines and the buffers of the kernel.
const (
	maxClientConns = 10_000
	tunnelBytes    = 48 << 10
)

// startBalance starts the embedded balancer.
func startBalance(_ context.Context, n process.Node) (c process.Component, err error) {
	config := balance.Config{
		Balancing: balancing(n.Config), Log: n.Log, MaxTunnels: n.ConnsWithin(tunnelBytes, maxClientConns),
	}
	if config.Layer == sut.Layer7 {
		bound, err := conns.New(n.ConnsWithin(process.HTTPConnBytes, maxClientConns), n.Registry)
		if err != nil {
			return c, err
		}
		config.Bound, config.Full = bound, conns.Refused
	}
	balancer, err := balance.New(config)
	if err != nil {
		return c, err
	}
	if c, err = withBalancer(n, c, balancer); err != nil {
		return c, err
	}
	listener, err := n.Listen()
	if err != nil {
		return c, err
	}
	c.Ready.Address, c.Died, c.Stop = listener.Addr().String(), make(chan error, 2), balancer.Shutdown
	go func() {
		if err := balancer.Serve(listener); err != nil {
			c.Died <- fmt.Errorf("serve clients: %w", err)
		}
	}()
	return c, nil
}

// balancer is a running balancer of any engine.
type balancer interface {
	balance.Engine
	SetUpstreams(ctx context.Context, next sut.Upstreams) error
}

// withBalancer adds the operator endpoints of a balancer and changes of its hosts to a
// component. On an error it stops the component.
func withBalancer(n process.Node, c process.Component, b balancer) (process.Component, error) {
	operators, err := balance.Admin(n.Registry, b)
	if err != nil && c.Stop != nil {
		err = errors.Join(err, c.Stop(context.Background()))
	}
	c.Operators = operators
	c.Rewire = func(ctx context.Context, w sut.Wiring) error { return b.SetUpstreams(ctx, upstreams(w)) }
	return c, err
}

// upstreams returns the web hosts and the routes of a wiring.
func upstreams(w sut.Wiring) sut.Upstreams {
	return sut.Upstreams{Peers: w.Active(sut.Web), Routes: w.Routes, Unsticky: w.Unsticky}
}

// balancing returns the configuration of a balancer, the same for every engine.
func balancing(config sut.NodeConfig) sut.Balancing {
	s, sticks := ladder.LBOf(config.Knobs), !config.Wiring.Unsticky
	return sut.Balancing{
		Node: config.Node, Upstreams: upstreams(config.Wiring), Policy: s.Policy, Sticky: s.Sticky() && sticks,
		Layer: string(s.Layer), EjectAfter: s.EjectAfter, LogRequests: ladder.LogsOf(config.Knobs).Requests,
		HealthInterval: s.HealthInterval,
	}
}
