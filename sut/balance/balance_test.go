package balance_test

import (
	"context"
	"errors"
	"net"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut/balance"
	"github.com/stagebench/stagebench/sut/balance/balancetest"
)

func TestBalancerConforms(t *testing.T) {
	t.Parallel()
	balancetest.Run(t, startBalancer)
}

// startBalancer serves our balancer in this process.
func startBalancer(t *testing.T, setup balancetest.Setup) balancetest.System {
	b, err := balance.New(balance.Config{
		Node: "lb-1", Upstreams: setup.Upstreams, Routes: setup.Routes, Layer: setup.Layer, Policy: setup.Policy, Sticky: setup.Sticky,
		HealthInterval: setup.HealthInterval, HealthTimeout: 5 * time.Second, EjectAfter: setup.EjectAfter,
	})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- b.Serve(listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := b.Shutdown(ctx); err != nil && !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return balancetest.System{URL: "http://" + listener.Addr().String(), Admin: b.Admin()}
}
