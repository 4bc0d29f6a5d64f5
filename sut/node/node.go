// Package node becomes a node of the system under test: it reads a
// sut.NodeConfig, starts what the role and the engine ask for, says that it is
// ready, and ends in order.
//
// It is the only package that knows all parts of the system, and keeps the
// contract that sut.NodeConfig describes: above all, a node dies when its
// standard input closes, so that no orphan can exist. It does not know that it
// is measured, and nothing about the topology but the addresses of the nodes
// that it calls.
package node

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"runtime"
	"runtime/debug"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/stagebench/stagebench/sut"
)

// part is the running inside of a node.
type part struct {
	ready sut.Ready
	// died delivers the error of a part that ends without being asked.
	died <-chan error
	// stop drains, within the time that ctx leaves.
	stop func(ctx context.Context) error
}

// orphanDrain bounds the draining when the parent has died: nobody waits for
// the answers any more.
const orphanDrain = 500 * time.Millisecond

// gcPercent lets the small heaps of nodes grow before they are collected. Hosts
// have a tenth of a core and half a gigabyte: CPU is what they are short of.
const gcPercent = 400

// birth is what a node starts with.
type birth struct {
	config   sut.NodeConfig
	log      *slog.Logger
	registry *prometheus.Registry
}

// Run is the whole life of a node. ctx ends when it is to drain; in is its
// standard input, out takes the ready line, and logs go to errs.
func Run(ctx context.Context, in io.Reader, out, errs io.Writer) error {
	decoder := json.NewDecoder(in)
	decoder.DisallowUnknownFields()
	var config sut.NodeConfig
	if err := decoder.Decode(&config); err != nil {
		return fmt.Errorf("node configuration on standard input: %w\nnodes are started by stagebench itself: see stagebench up --help", err)
	}
	log := slog.New(slog.NewJSONHandler(errs, nil)).With("node", config.Node, "role", string(config.Role))
	runtime.GOMAXPROCS(max(config.Procs, 1))
	debug.SetGCPercent(gcPercent)

	orphaned := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in) // ends when the parent does
		close(orphaned)
	}()
	starting, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-orphaned:
			cancel()
		case <-starting.Done():
		}
	}()
	b := birth{config: config, log: log, registry: newRegistry()}
	p, err := b.start(starting)
	if err != nil {
		return fmt.Errorf("start node %s: %w", config.Node, err)
	}
	if err := json.NewEncoder(out).Encode(p.ready); err != nil {
		return errors.Join(fmt.Errorf("say that node %s is ready: %w", config.Node, err), p.stop(ctx))
	}
	log.Info("ready", "address", p.ready.Address, "version", p.ready.Version)
	return b.live(ctx, p, orphaned)
}

// live waits for the end and drains.
func (b birth) live(ctx context.Context, p part, orphaned <-chan struct{}) error {
	drain := time.Duration(b.config.DrainSeconds * float64(time.Second))
	select {
	case err := <-p.died:
		return fmt.Errorf("node %s: %w", b.config.Node, err)
	case <-ctx.Done():
		b.log.Info("draining", "bound_seconds", b.config.DrainSeconds)
	case <-orphaned:
		b.log.Info("the parent has gone")
		drain = min(drain, orphanDrain)
	}
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), drain)
	defer cancel()
	go func() {
		select {
		case <-orphaned:
			time.AfterFunc(orphanDrain, cancel)
		case <-bounded.Done():
		}
	}()
	if err := p.stop(bounded); err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("stop node %s: %w", b.config.Node, err)
	}
	return nil
}

// start starts the part that role and engine ask for.
func (b birth) start(ctx context.Context) (part, error) {
	switch {
	case b.config.Role == sut.Web && b.config.Engine == sut.App:
		return b.startWeb(ctx)
	case b.config.Role == sut.Blob && b.config.Engine == sut.Files:
		return b.startBlob()
	case b.config.Role == sut.DB && b.config.Engine == sut.SQLite:
		return b.startSQLite(ctx)
	case b.config.Role == sut.DB && b.config.Engine == sut.Postgres:
		return b.startPostgres(ctx)
	case b.config.Role == sut.Balance && b.config.Engine == sut.OwnBalance:
		return b.startBalance(ctx)
	case b.config.Role == sut.Balance && b.config.Engine == sut.HAProxy:
		return b.startHAProxy(ctx)
	case b.config.Role == sut.Seed:
		return b.seed(ctx)
	}
	return part{}, fmt.Errorf("no engine %q for role %q", b.config.Engine, b.config.Role)
}

// listen binds the node's own address; port 0 is any free one.
func (b birth) listen(port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort(b.config.Listen, strconv.Itoa(port)))
}

// listenBoth binds the node's own port, and another one for its metrics.
func (b birth) listenBoth() (own, admin net.Listener, err error) {
	if own, err = b.listen(b.config.Port); err != nil {
		return nil, nil, err
	}
	if admin, err = b.listen(0); err != nil {
		return nil, nil, errors.Join(err, own.Close())
	}
	return own, admin, nil
}

// one returns the address of the one node of a role that this node calls.
func (b birth) one(role sut.Role) (string, error) {
	if peers := b.config.Uses[role]; len(peers) == 1 {
		return peers[0].Address, nil
	}
	return "", fmt.Errorf("role %s uses one %s node, but is told of %d", b.config.Role, role, len(b.config.Uses[role]))
}

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// admin serves metrics and liveness of a node whose protocol is not HTTP.
func (b birth) admin() http.Handler {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(b.registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	return mux
}
