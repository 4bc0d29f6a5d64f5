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

// proxyTimeout bounds the work of a cache proxy for one request. workTimeout bounds how
// long its clients wait. It is longer than proxyTimeout, so that a proxy with a slow
// database does not look dead. It is much shorter than the time that a web host has for a
// request, so that after a proxy hangs there is time for another host.
const (
	proxyTimeout = 3 * time.Second
	workTimeout  = proxyTimeout + 500*time.Millisecond
)

// cacheProxy is the cache proxy of a cache node that loads or writes records itself. Its
// methods close and rewire do nothing on nil.
type cacheProxy struct {
	*cacheproxy.Proxy
	records *store.Store
	node    process.Node
}

// startProxy makes a RESP server answer as a cache proxy over the given values. It
// returns nil if the cache tier neither loads nor writes records itself.
func startProxy(
	ctx context.Context, n process.Node, server *resp.Server, values cacheproxy.Values,
) (*cacheProxy, error) {
	s := ladder.CacheOf(n.Config.Knobs)
	if !s.UsesDatabase() {
		return nil, nil
	}
	config := cacheproxy.Config{
		Values: values, TTL: s.TTL, FeedTTL: s.FeedTTL, SingleFlight: s.SingleFlight, Timeout: proxyTimeout,
		Registry: n.Registry, Log: n.Log,
	}
	if s.Write == ladder.WriteBack {
		config.FlushInterval = s.FlushInterval
	}
	// Write-back changes the newest state of a record. A replica may not have it yet.
	records, err := openStore(ctx, n, config.FlushInterval > 0, dbConns)
	if err != nil {
		return nil, err
	}
	config.Records = records
	inner, err := cacheproxy.New(config)
	if err != nil {
		records.Close()
		return nil, err
	}
	p := &cacheProxy{inner, records, n}
	commands := map[string]resp.Command{}
	for name, c := range p.Commands() {
		commands[name] = resp.Command(c)
	}
	err = server.Extend(commands)
	if err == nil {
		err = p.SetMoving(ctx, n.Config.Wiring.Rebalancing)
	}
	if err != nil {
		return nil, errors.Join(err, p.close(ctx))
	}
	return p, nil
}

// close flushes the acknowledged writes and closes the connections to the database.
func (p *cacheProxy) close(ctx context.Context) error {
	if p == nil {
		return nil
	}
	defer p.records.Close()
	err := p.Close(ctx)
	if err != nil {
		p.node.Log.Error("acknowledged writes are lost: the cache proxy could not flush them", "error", err.Error())
	}
	return err
}

// rewire gives the proxy its new databases, and whether keys move.
func (p *cacheProxy) rewire(ctx context.Context, w sut.Wiring) error {
	if p == nil {
		return nil
	}
	if err := p.records.SetDatabases(w.Active(sut.DB)); err != nil {
		return rejected("%w", err)
	}
	return p.SetMoving(ctx, w.Rebalancing)
}

// serveRESP starts serving clients. Stop first ends all client connections and then
// flushes the proxy, so that no write is acknowledged after the flush.
func serveRESP(server *resp.Server, proxy *cacheProxy) process.Component {
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
			// Slow clients must not use up the time to flush.
			clients, cancel := halfDeadline(ctx)
			defer cancel()
			return errors.Join(server.Shutdown(clients), proxy.close(ctx))
		},
	}
}

// halfDeadline returns a context with half of the remaining time.
func halfDeadline(ctx context.Context) (context.Context, context.CancelFunc) {
	if deadline, bounded := ctx.Deadline(); bounded {
		return context.WithTimeout(ctx, time.Until(deadline)/2)
	}
	return context.WithCancel(ctx)
}

// startBehindProxy starts a native server with a cache proxy in front of it. client is
// the configuration with which the proxy connects to the server.
func startBehindProxy(
	ctx context.Context, n process.Node, s process.Server, client cache.Config,
) (_ process.Component, _ *cacheProxy, err error) {
	// The node's own port is bound first: else the server could get it.
	listener, err := n.Listen()
	if err != nil {
		return process.Component{}, nil, err
	}
	var stops []func(context.Context) error
	stop := func(ctx context.Context) (err error) {
		for _, stop := range slices.Backward(stops) {
			err = errors.Join(err, stop(ctx))
		}
		stops = nil
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, listener.Close(), stop(context.WithoutCancel(ctx)))
		}
	}()
	native, err := n.StartNative(ctx, s, cacheDeathSignal)
	if err != nil {
		return process.Component{}, nil, err
	}
	stops = append(stops, native.Stop)
	cache.LogTo(n.Log)
	client.Hosts, client.Registry = []sut.Peer{{Node: n.Config.Node, Address: native.Ready.Address}}, n.Registry
	values, err := cache.New(client)
	if err != nil {
		return process.Component{}, nil, err
	}
	stops = append(stops, func(context.Context) error { values.Close(); return nil })
	server, err := resp.New(resp.Config{Listener: listener, Proxy: true, Secret: n.Config.Secret})
	if err != nil {
		return process.Component{}, nil, err
	}
	proxy, err := startProxy(ctx, n, server, values)
	if err != nil {
		return process.Component{}, nil, err
	}
	c := serveRESP(server, proxy)
	stopProxy := stopOnce(c.Stop)
	stops = append(stops, stopProxy)
	go func() {
		death := <-native.Died
		// The proxy still holds acknowledged writes in memory. They must be flushed
		// before the node dies.
		ctx, cancel := context.WithTimeout(context.Background(), 2*proxyTimeout)
		defer cancel()
		c.Died <- errors.Join(death, stopProxy(ctx))
	}()
	c.Stop = stop
	c.Ready.Version, c.Ready.PIDs = native.Ready.Version, native.Ready.PIDs
	return c, proxy, nil
}

// stopOnce returns a stop that may be called concurrently. The first call runs stop.
// Each call waits until stop ends or the call's own context does.
func stopOnce(stop func(context.Context) error) func(context.Context) error {
	var once sync.Once
	ended := make(chan struct{})
	var failed error
	return func(ctx context.Context) error {
		once.Do(func() {
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
