package node

import (
	"context"
	"log/slog"
	"net/http"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/conns"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/jobs"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/photos"
)

const (
	// workerConns is the maximum number of connections of a worker to each database. It does one job at a time for each
	// of its processors.
	workerConns = 2
	// healthConns is the maximum number of connections that ask for the health of a worker.
	healthConns = 16
)

// startWorker starts a worker host. It serves nothing but its health.
func startWorker(ctx context.Context, n process.Node) (c process.Component, err error) {
	s, err := openStores(ctx, n, storesConfig{readPrimary: true, conns: workerConns})
	if err != nil {
		return c, err
	}
	q, err := openQueue(n, n.Config.Wiring.Active(sut.Queue), nil)
	if err != nil {
		s.close()
		return c, err
	}
	closeAll := func() {
		q.Close()
		s.close()
	}
	defer func() {
		if err != nil {
			closeAll()
		}
	}()
	procs := max(n.Config.Procs, 1)
	processor, err := jobs.New(jobs.Config{
		Records: primaryFirst{s}, Blobs: s.bytes, Inspect: imaging.Inspect, Process: imaging.Process,
		MemoryBytes: app.PictureMemory(n.Config.MemoryBytes), Now: time.Now,
	})
	if err != nil {
		return c, err
	}
	bound, err := conns.New(healthConns, nil)
	if err != nil {
		return c, err
	}
	listener, err := n.Listen()
	if err != nil {
		return c, err
	}
	h := process.NewHTTP()
	h.Serve(listener, &http.Server{Handler: process.Health()}, bound)
	c = process.Component{
		Ready: sut.Ready{Address: listener.Addr().String()}, Died: h.Died, Operators: n.Operators(),
		// The brokers keep their addresses.
		Rewire: func(ctx context.Context, next sut.Wiring) error { return s.rewire(ctx, next, nil) },
		Stop: func(ctx context.Context) error {
			err := h.Stop(ctx)
			closeAll()
			return err
		},
	}
	return c.WithBackground(func(ctx context.Context) {
		var all sync.WaitGroup
		for range procs {
			all.Go(func() { q.Work(ctx, processor) })
		}
		if n.Config.Wiring.Active(sut.DB)[0].Shard > 0 {
			all.Go(func() { relay(ctx, "follows wait for another shard", s.database.RelayFollows, n.Log) })
		}
		if ladder.ShardOf(n.Config.Knobs).Denormalised {
			all.Go(func() { relay(ctx, "photos wait for feeds", s.database.RelayPhotos, n.Log) })
		}
		all.Wait()
	}), nil
}

const (
	// relayPoll is the time between two looks for what waits for other shards, and relayLimit how much of each shard one
	// look relays.
	relayPoll  = 200 * time.Millisecond
	relayLimit = 200
)

// relay relays what waits at shards until ctx ends. Several workers may do it at once. waits is the message of its
// errors.
func relay(
	ctx context.Context, waits string, some func(ctx context.Context, limit int) (relayed int, err error),
	log *slog.Logger,
) {
	poll := time.NewTicker(relayPoll)
	defer poll.Stop()
	var last string
	for {
		select {
		case <-poll.C:
		case <-ctx.Done():
			return
		}
		_, err := some(ctx, relayLimit)
		switch {
		case err == nil:
			last = ""
		case ctx.Err() == nil && err.Error() != last:
			last = err.Error()
			log.Warn(waits, "error", last)
		}
	}
}

// primaryFirst reads photos from the primary database, because a replica and the cache may not have the newest state.
// It writes through the cache tier, which may hold the record.
type primaryFirst struct{ stores }

// Photo implements jobs.Records.
func (p primaryFirst) Photo(ctx context.Context, id photos.ID) (photos.Photo, error) {
	return p.database.Photo(ctx, id)
}

// FinishPhoto implements jobs.Records.
func (p primaryFirst) FinishPhoto(ctx context.Context, end photos.Processed) (int64, error) {
	return p.records.FinishPhoto(ctx, end)
}
