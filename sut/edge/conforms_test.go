package edge_test

import (
	"context"
	"net"
	"testing"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/edge"
	"github.com/stagebench/stagebench/sut/edge/edgetest"
)

// engine is the embedded edge for the kit.
func engine() edgetest.Engine {
	return edgetest.Engine{Start: startSystem, Differences: edge.Differences()}
}

func startSystem(t testing.TB, cfg sut.EdgeConfig) edgetest.System {
	t.Helper()
	e, err := edge.New(edge.Config{EdgeConfig: cfg})
	if err != nil {
		t.Fatal(err)
	}
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- e.Serve(listener) }()
	t.Cleanup(func() {
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // whoever is still connected is cut off
		_ = e.Shutdown(ctx)
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return edgetest.System{URL: "http://" + listener.Addr().String(), EdgeServer: e}
}

func TestConforms(t *testing.T) { edgetest.Run(t, engine()) }

func BenchmarkEdges(b *testing.B) { edgetest.BenchmarkEdges(b, engine()) }
