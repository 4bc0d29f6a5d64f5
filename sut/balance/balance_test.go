package balance_test

import (
	"context"
	"net/http/httptest"
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
		Node: "lb-1", Upstreams: setup.Upstreams, Policy: setup.Policy, Sticky: setup.Sticky,
		HealthInterval: setup.HealthInterval, HealthTimeout: 5 * time.Second,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	checked := make(chan error)
	go func() { checked <- b.Run(ctx) }()
	server := httptest.NewServer(b.Handler())
	t.Cleanup(func() {
		cancel()
		if err := <-checked; err != nil {
			t.Error(err)
		}
		server.Close()
		b.Close()
	})
	return balancetest.System{URL: server.URL, Admin: b.Admin()}
}
