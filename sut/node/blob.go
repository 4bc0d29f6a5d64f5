package node

import (
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/ladder"
)

// blobs returns the stores of photo bytes as one.
func (b birth) blobs() (*blob.Ring, error) {
	return blob.NewRing(blob.RingConfig{
		Peers: b.config.Wiring.Uses[sut.Blob], Copies: ladder.BlobOf(b.config.Knobs).Copies,
		Client: blob.ClientConfig{RequestID: app.RequestID}, Registry: b.registry,
	})
}

func (b birth) startBlob() (part, error) {
	dir, err := blob.OpenDir(b.config.Dir)
	if err != nil {
		return part{}, err
	}
	listener, admin, err := b.listenBoth()
	if err != nil {
		return part{}, err
	}
	settings := ladder.BlobOf(b.config.Knobs)
	counts, _ := b.config.Data.Counts() // without a data set there are no seeded photos
	handler := blob.NewHandler(blob.HandlerConfig{
		Dir: dir, Log: b.log, Registry: b.registry, Node: b.config.Node, Copies: settings.Copies, Seeded: counts.Photos,
		Capacity: int64(settings.CapacityMB) * 1_000_000, LogRequests: ladder.LogsOf(b.config.Knobs).Requests,
	})
	h := newHTTPServer()
	h.serve(listener, handler)
	h.serve(admin, b.admin())
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: listener.Addr().String(), Admin: admin.Addr().String()},
		died:  h.died, stop: h.stop,
	}, nil
}
