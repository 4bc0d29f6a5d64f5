package node

import (
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/blob"
)

// blobs returns the client of the stores of photo bytes.
func (b birth) blobs() (*blob.Client, error) {
	address, err := b.one(sut.Blob)
	if err != nil {
		return nil, err
	}
	return blob.NewClient(blob.ClientConfig{Address: address}), nil
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
	h.serve(listener, blob.NewHandler(blob.HandlerConfig{Dir: dir, Log: b.log, Registry: b.registry}))
	h.serve(admin, b.admin())
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: listener.Addr().String(), Admin: admin.Addr().String()},
		died:  h.died, stop: h.stop,
	}, nil
}
