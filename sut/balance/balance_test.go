package balance_test

import (
	"context"
	"errors"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance"
	"github.com/stagebench/stagebench/sut/balance/balancetest"
)

func TestBalancerConforms(t *testing.T) {
	t.Parallel()
	balancetest.Run(t, startBalancer)
}

// startBalancer runs the embedded balancer in this process.
func startBalancer(t *testing.T, setup balancetest.Setup) balancetest.System {
	b, err := balance.New(balance.Config{Balancing: setup.Balancing()})
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
	return balancetest.Serving(t, listener.Addr().String(), b)
}

// TestHostDiesDuringRequest: the client gets a 502 when the host dies while it works on
// a request, both on a new connection and on a reused one.
func TestHostDiesDuringRequest(t *testing.T) {
	t.Parallel()
	host := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/die" {
			panic(http.ErrAbortHandler)
		}
	}))
	t.Cleanup(host.Close)
	upstreams := []sut.Peer{{Node: "web-1", Address: host.Listener.Addr().String()}}
	system := startBalancer(t, balancetest.Setup{Upstreams: upstreams, HealthInterval: time.Second})
	for _, paths := range [][]string{{"/die"}, {"/", "/die"}} {
		client := http.Client{Transport: &http.Transport{}}
		for _, path := range paths {
			res, err := client.Get(system.URL + path)
			if err != nil {
				t.Fatal(err)
			}
			_ = res.Body.Close()
			if want := map[string]int{"/": 200, "/die": 502}[path]; res.StatusCode != want {
				t.Errorf("%v: status %d for %s, want %d", paths, res.StatusCode, path, want)
			}
		}
		client.CloseIdleConnections()
	}
}
