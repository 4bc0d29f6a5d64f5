package node

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/cache/cachefront"
	"github.com/stagebench/stagebench/sut/resp"
)

// How long a front may take for all that a request needs, and its clients wait for it:
// longer, so that a front whose database is slow is not taken for one that is dead.
const (
	frontTimeout  = 5 * time.Second
	clientTimeout = frontTimeout + 500*time.Millisecond
)

// front is what a cache host has that loads or writes records itself.
type front struct {
	close func(context.Context) error
	admin http.Handler // of the node
}

// fronted says whether the cache tier loads or writes records itself.
func (b birth) fronted() bool {
	return b.config.Knobs["cache.read"] == "read_through" || b.config.Knobs["cache.write"] != "write_around"
}

// startFront has a server answer as a front before values.
func (b birth) startFront(ctx context.Context, server *resp.Server, values cachefront.Values) (front, error) {
	knobs := b.config.Knobs
	back := time.Duration(0)
	if knobs["cache.write"] == "write_back" {
		back = knobs.Duration("cache.flush_interval")
	}
	// What is written back is built on the newest state of a record, which a replica
	// may not have yet.
	records, err := b.openStore(ctx, back > 0)
	if err != nil {
		return front{}, err
	}
	f, err := cachefront.New(cachefront.Config{
		Values: values, Records: records, TTL: knobs.Duration("cache.ttl"), FeedTTL: knobs.Duration("cache.feed_ttl"),
		SingleFlight: knobs.Bool("cache.single_flight"), ReadThrough: knobs["cache.read"] == "read_through", FlushInterval: back,
		Timeout: frontTimeout, Registry: b.registry, Log: b.log,
	})
	if err != nil {
		records.Close()
		return front{}, err
	}
	end := func(ctx context.Context) error {
		defer records.Close()
		return f.Close(ctx)
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

// before puts a front before a native server that has been started, and that a client
// with this configuration can speak to.
func (b birth) before(ctx context.Context, native part, client cache.Config) (p part, err error) {
	ends := []func(context.Context) error{native.stop}
	stop := func(ctx context.Context) (err error) {
		for i := range ends {
			err = errors.Join(err, ends[len(ends)-1-i](ctx))
		}
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
		return part{}, err
	}
	ends = append(ends, func(context.Context) error { values.Close(); return nil })
	listener, err := b.listen(b.config.Port)
	if err != nil {
		return part{}, err
	}
	server, err := resp.New(resp.Config{Listener: listener, Front: true})
	if err != nil {
		return part{}, errors.Join(err, listener.Close())
	}
	front, err := b.startFront(ctx, server, values)
	if err != nil {
		return part{}, errors.Join(err, listener.Close())
	}
	p = b.serveRESP(server, front)
	ends = append(ends, p.stop)
	p.stop = stop
	p.ready.Version, p.ready.PIDs = native.ready.Version, native.ready.PIDs
	go func() { p.died <- <-native.died }()
	return b.withAdmin(p, front.admin)
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
		stop:  func(ctx context.Context) error { return errors.Join(server.Shutdown(ctx), f.close(ctx)) },
	}
}
