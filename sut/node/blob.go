package node

import (
	"fmt"
	"slices"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/photos"
)

// blobs returns the stores of photo bytes as one.
func (b birth) blobs() (*blob.Ring, error) {
	return blob.NewRing(blob.RingConfig{
		Peers: b.config.Wiring.Uses[sut.Blob], Copies: ladder.BlobOf(b.config.Knobs).Copies,
		Client: blob.ClientConfig{RequestID: app.RequestID}, Registry: b.registry,
	})
}

// seeded says which photos may be on this host. All hosts begin with a copy of the
// same template, of which each has its own part only; an uploaded photo may be
// anywhere.
func (b birth) seeded() func(photos.ID) bool {
	s := ladder.BlobOf(b.config.Knobs)
	counts, known := b.config.Data.Counts()
	if s.Hosts < 2 || !known {
		return nil
	}
	var names []string
	for i := range s.Hosts {
		names = append(names, fmt.Sprintf("blob-%d", i+1))
	}
	return func(id photos.ID) bool {
		return int64(id) > int64(counts.Photos) || slices.Contains(blob.Place(id, names)[:s.Copies], b.config.Node)
	}
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
	h := newHTTPServer()
	h.serve(listener, blob.NewHandler(blob.HandlerConfig{
		Dir: dir, Log: b.log, Registry: b.registry, Holds: b.seeded(),
		Capacity: int64(ladder.BlobOf(b.config.Knobs).CapacityMB) * 1_000_000, LogRequests: ladder.LogsOf(b.config.Knobs).Requests,
	}))
	h.serve(admin, b.admin())
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: listener.Addr().String(), Admin: admin.Addr().String()},
		died:  h.died, stop: h.stop,
	}, nil
}
