package node

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/cache/cachefront"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/resp"
)

// How long a front may take for all that a request needs, and its clients wait for it:
// longer, so that a front whose database is slow is not taken for one that is dead, and
// clearly shorter than a web host has for a request, so that when one hangs there is
// time to ask elsewhere.
const (
	frontTimeout = 3 * time.Second
	workTimeout  = frontTimeout + 500*time.Millisecond
)

// front is what a cache host has that loads or writes records itself.
type front struct {
	close func(context.Context) error
	admin http.Handler // of the node
}

// startFront has a server answer as a front before values.
func (b birth) startFront(ctx context.Context, server *resp.Server, values cachefront.Values) (front, error) {
	s := b.cache()
	back := time.Duration(0)
	if s.Write == ladder.WriteBack {
		back = s.FlushInterval
	}
	// What is written back is built on the newest state of a record, which a replica
	// may not have yet.
	records, err := b.openStore(ctx, back > 0)
	if err != nil {
		return front{}, err
	}
	f, err := cachefront.New(cachefront.Config{
		Values: values, Records: records, TTL: s.TTL, FeedTTL: s.FeedTTL,
		SingleFlight: s.SingleFlight, FlushInterval: back,
		Timeout: frontTimeout, Registry: b.registry, Log: b.log,
	})
	if err != nil {
		records.Close()
		return front{}, err
	}
	end := func(ctx context.Context) error {
		defer records.Close()
		err := f.Close(ctx)
		if err != nil {
			b.log.Error("writes were acknowledged and are lost", "error", err.Error())
		}
		return err
	}
	commands := map[string]resp.Command{}
	for name, c := range f.Commands() {
		commands[name] = resp.Command(c)
	}
	if err := server.Extend(commands); err != nil {
		return front{}, errors.Join(err, end(ctx))
	}
	admin := http.NewServeMux()
	admin.Handle("/", b.admin())
	admin.Handle("PUT "+sut.DatabasesPath, databasesHandler(records))
	return front{close: end, admin: admin}, nil
}

// before puts a front before a native server, which start starts and a client with
// this configuration can speak to.
func (b birth) before(ctx context.Context, client cache.Config, start func() (part, error)) (_ part, err error) {
	// The node's own port first: the server could be given it.
	listener, err := b.listen(b.config.Port)
	if err != nil {
		return part{}, err
	}
	native, err := start()
	if err != nil {
		return part{}, errors.Join(err, listener.Close())
	}
	ends := []func(context.Context) error{native.stop}
	stop := func(ctx context.Context) (err error) {
		for _, end := range slices.Backward(ends) {
			err = errors.Join(err, end(ctx))
		}
		ends = nil
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, stop(context.WithoutCancel(ctx)))
		}
	}()
	cache.LogTo(b.log)
	client.Hosts, client.Registry = cache.Hosts{Peers: []sut.Peer{{Node: b.config.Node, Address: native.ready.Address}}}, b.registry
	values, err := cache.New(client)
	if err != nil {
		return part{}, errors.Join(err, listener.Close())
	}
	ends = append(ends, func(context.Context) error { values.Close(); return nil })
	server, err := resp.New(resp.Config{Listener: listener, Front: true})
	if err != nil {
		return part{}, errors.Join(err, listener.Close())
	}
	front, err := b.startFront(ctx, server, values)
	if err != nil {
		return part{}, errors.Join(err, listener.Close())
	}
	served := b.serveRESP(server, front)
	var once sync.Once
	ended := make(chan struct{})
	var failed error
	// Whoever comes second waits as long as he has time himself.
	end := func(ctx context.Context) error {
		once.Do(func() {
			go func() {
				defer close(ended)
				failed = served.stop(ctx)
			}()
		})
		select {
		case <-ended:
			return failed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	ends = append(ends, end)
	go func() {
		death := <-native.died
		// The front is well, and what it has acknowledged is in its own memory.
		ctx, cancel := context.WithTimeout(context.Background(), 2*frontTimeout)
		defer cancel()
		served.died <- errors.Join(death, end(ctx))
	}()
	whole := served
	whole.stop = stop
	whole.ready.Version, whole.ready.PIDs = native.ready.Version, native.ready.PIDs
	return b.withAdmin(whole, front.admin)
}

// serveRESP serves what a server of RESP answers, and ends it in order: what was
// acknowledged is flushed when nobody can ask any more.
func (b birth) serveRESP(server *resp.Server, f front) part {
	died := make(chan error, 2)
	go func() {
		if err := server.Serve(); err != nil {
			died <- err
		}
	}()
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: server.Addr().String()},
		died:  died,
		stop: func(ctx context.Context) error {
			// What clients take to leave is not taken from the time to flush.
			leave, cancel := half(ctx)
			defer cancel()
			return errors.Join(server.Shutdown(leave), f.close(ctx))
		},
	}
}

// half is a context with half of the time that there is.
func half(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, bounded := ctx.Deadline(); bounded {
		return context.WithTimeout(ctx, time.Until(deadline)/2)
	}
	return context.WithCancel(ctx)
}
