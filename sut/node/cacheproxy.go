package node

import (
	"context"
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/cache"
	"github.com/stagebench/stagebench/sut/cache/cacheproxy"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/resp"
	"github.com/stagebench/stagebench/sut/store"
)

// How long a front may take for all that a request needs, and its clients wait for it:
// longer, so that a front whose database is slow is not taken for one that is dead, and
// clearly shorter than a web host has for a request, so that when one hangs there is
// time to ask elsewhere.
const (
	proxyTimeout = 3 * time.Second
	workTimeout  = proxyTimeout + 500*time.Millisecond
)

// cacheProxy is what a cache host has that loads or writes records itself.
type cacheProxy struct {
	*cacheproxy.Proxy
	records *store.Store
	node    process.Node
}

// startProxy has a server answer as a front before values, where the cache tier loads
// or writes records itself; else it returns nil.
func startProxy(ctx context.Context, n process.Node, server *resp.Server, values cacheproxy.Values) (*cacheProxy, error) {
	s := ladder.CacheOf(n.Config.Knobs)
	if !s.Loads() {
		return nil, nil
	}
	config := cacheproxy.Config{
		Values: values, TTL: s.TTL, FeedTTL: s.FeedTTL, SingleFlight: s.SingleFlight, Timeout: proxyTimeout,
		Registry: n.Registry, Log: n.Log,
	}
	if s.Write == ladder.WriteBack {
		config.FlushInterval = s.FlushInterval
	}
	// What is written back is built on the newest state of a record, which a replica
	// may not have yet.
	records, err := openStore(ctx, n, config.FlushInterval > 0)
	if err != nil {
		return nil, err
	}
	config.Records = records
	inner, err := cacheproxy.New(config)
	if err != nil {
		records.Close()
		return nil, err
	}
	f := &cacheProxy{inner, records, n}
	commands := map[string]resp.Command{}
	for name, c := range f.Commands() {
		commands[name] = resp.Command(c)
	}
	err = server.Extend(commands)
	if err == nil {
		err = f.SetMoving(ctx, n.Config.Wiring.Moving)
	}
	if err != nil {
		return nil, errors.Join(err, f.close(ctx))
	}
	return f, nil
}

// close flushes what was acknowledged. There is nothing to close without a front.
func (f *cacheProxy) close(ctx context.Context) error {
	if f == nil {
		return nil
	}
	defer f.records.Close()
	err := f.Close(ctx)
	if err != nil {
		f.node.Log.Error("writes were acknowledged and are lost", "error", err.Error())
	}
	return err
}

// rewire tells a front of other databases, and whether keys move.
func (f *cacheProxy) rewire(ctx context.Context, w sut.Wiring) error {
	if f == nil {
		return nil
	}
	primary, replicas, err := databases(w)
	if err != nil {
		return err
	}
	if err := f.records.SetDatabases(primary, replicas); err != nil {
		return refused("%w", err)
	}
	return f.SetMoving(ctx, w.Moving)
}

// serveRESP serves what a server of RESP answers, and ends it in order: what was
// acknowledged is flushed when nobody can ask any more.
func serveRESP(server *resp.Server, f *cacheProxy) process.Component {
	died := make(chan error, 3)
	go func() {
		if err := server.Serve(); err != nil {
			died <- err
		}
	}()
	return process.Component{
		Ready: sut.Ready{Address: server.Addr().String()},
		Died:  died,
		Stop: func(ctx context.Context) error {
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

// before puts a front before a native server, which a client with this configuration
// can speak to.
func before(
	ctx context.Context, n process.Node, s process.Server, client cache.Config,
) (_ process.Component, _ *cacheProxy, err error) {
	// The node's own port first: the server could be given it.
	listener, err := n.Listen()
	if err != nil {
		return process.Component{}, nil, err
	}
	var ends []func(context.Context) error
	stop := func(ctx context.Context) (err error) {
		for _, end := range slices.Backward(ends) {
			err = errors.Join(err, end(ctx))
		}
		ends = nil
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, listener.Close(), stop(context.WithoutCancel(ctx)))
		}
	}()
	native, err := n.StartNative(ctx, s, nativeDeath)
	if err != nil {
		return process.Component{}, nil, err
	}
	ends = append(ends, native.Stop)
	cache.LogTo(n.Log)
	client.Hosts, client.Registry = []sut.Peer{{Node: n.Config.Node, Address: native.Ready.Address}}, n.Registry
	values, err := cache.New(client)
	if err != nil {
		return process.Component{}, nil, err
	}
	ends = append(ends, func(context.Context) error { values.Close(); return nil })
	server, err := resp.New(resp.Config{Listener: listener, Proxy: true})
	if err != nil {
		return process.Component{}, nil, err
	}
	f, err := startProxy(ctx, n, server, values)
	if err != nil {
		return process.Component{}, nil, err
	}
	served := serveRESP(server, f)
	end := once(served.Stop)
	ends = append(ends, end)
	go func() {
		death := <-native.Died
		// The front is well, and what it has acknowledged is in its own memory.
		ctx, cancel := context.WithTimeout(context.Background(), 2*proxyTimeout)
		defer cancel()
		served.Died <- errors.Join(death, end(ctx))
	}()
	whole := served
	whole.Stop = stop
	whole.Ready.Version, whole.Ready.PIDs = native.Ready.Version, native.Ready.PIDs
	return whole, f, nil
}

// once returns a stop that may be called twice at a time: whoever comes second waits as
// long as he has time himself.
func once(stop func(context.Context) error) func(context.Context) error {
	var begin sync.Once
	ended := make(chan struct{})
	var failed error
	return func(ctx context.Context) error {
		begin.Do(func() {
			go func() {
				defer close(ended)
				failed = stop(ctx)
			}()
		})
		select {
		case <-ended:
			return failed
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
