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
	"github.com/stagebench/stagebench/sut/ladder"
)

// part is the running inside of a node.
type part struct {
	ready sut.Ready
	// died delivers the error of a part that ends without being asked.
	died chan error
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
	config, err := decodeConfig(in)
	if err != nil {
		return fmt.Errorf("node configuration on standard input: %w\nnodes are started by stagebench itself: see stagebench up --help", err)
	}
	log := slog.New(slog.NewJSONHandler(errs, nil)).With("node", config.Node, "role", string(config.Role))
	runtime.GOMAXPROCS(max(config.Procs, 1))
	if config.Engine != sut.RESP { // whose heap is large, and is what the host has memory for
		debug.SetGCPercent(gcPercent)
	}

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

// decodeConfig reads one configuration and leaves the rest of the input alone.
// What it returns can be started with: knobs that are there have values that
// they allow, and names and numbers are in their ranges.
func decodeConfig(in io.Reader) (sut.NodeConfig, error) {
	decoder := json.NewDecoder(in)
	decoder.DisallowUnknownFields()
	var config sut.NodeConfig
	if err := decoder.Decode(&config); err != nil {
		return config, err
	}
	// A template is built by nodes that are part of no topology, and have no knobs.
	config.Knobs = ladder.Complete(config.Knobs)
	return config, checkConfig(config)
}

// checkConfig says what is wrong with a configuration.
func checkConfig(config sut.NodeConfig) error {
	switch {
	case config.Node == "":
		return errors.New("the node has no name")
	case net.ParseIP(config.Listen) == nil:
		return fmt.Errorf("listen %q: want an IP address", config.Listen)
	case config.Port < 0 || config.Port > 65535:
		return fmt.Errorf("port %d: want 0 to 65535", config.Port)
	case config.Procs < 0 || config.Procs > maxProcs:
		return fmt.Errorf("procs %d: want 1 to %d, or 0 for 1", config.Procs, maxProcs)
	case !(config.DrainSeconds >= 0 && config.DrainSeconds <= maxDrainSeconds):
		return fmt.Errorf("drain_seconds %v: want 0 to %d", config.DrainSeconds, maxDrainSeconds)
	case config.Service != "" && config.Service != sut.Reads && config.Service != sut.Uploads:
		return fmt.Errorf("service %q: want %s, %s, or none for everything", config.Service, sut.Reads, sut.Uploads)
	case config.Service != "" && config.Role != sut.Web:
		return fmt.Errorf("service %q: only web nodes have one, and this is a node of role %q", config.Service, config.Role)
	}
	if err := checkReplication(config.Replication); err != nil {
		return err
	}
	for role, peers := range config.Wiring.Uses {
		if err := checkPeers(peers); err != nil {
			return fmt.Errorf("uses %s: %w", role, err)
		}
	}
	for _, route := range config.Wiring.Routes {
		if err := route.Validate(); err != nil {
			return fmt.Errorf("route to %v: %w", route.To, err)
		}
	}
	return ladder.Validate(config.Knobs)
}

// checkPeers says what is wrong with nodes that another one calls.
func checkPeers(peers []sut.Peer) error {
	known := map[string]bool{}
	for _, p := range peers {
		_, port, err := net.SplitHostPort(p.Address)
		if number, bad := strconv.ParseUint(port, 10, 16); err != nil || bad != nil || number == 0 {
			return fmt.Errorf("node %q: address %q: want host:port", p.Node, p.Address)
		}
		switch {
		case p.Node == "":
			return fmt.Errorf("the node at %s has no name", p.Address)
		case known[p.Node]:
			return fmt.Errorf("node %q is named twice", p.Node)
		case !(p.Weight >= 0):
			return fmt.Errorf("node %q: weight %v: want 0 or more", p.Node, p.Weight)
		}
		known[p.Node] = true
	}
	return nil
}

// Bounds of a configuration.
const (
	maxDrainSeconds = 3600
	maxProcs        = 4096
)

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
	case b.config.Role == sut.Cache && b.config.Engine == sut.RESP:
		return b.startRESP(ctx)
	case b.config.Role == sut.Cache && b.config.Engine == sut.Redis:
		return b.startRedis(ctx)
	case b.config.Role == sut.Cache && b.config.Engine == sut.Memcached:
		return b.startMemcached(ctx)
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
	if peers := b.config.Wiring.Uses[role]; len(peers) == 1 {
		return peers[0].Address, nil
	}
	return "", fmt.Errorf("role %s uses one %s node, but is told of %d", b.config.Role, role, len(b.config.Wiring.Uses[role]))
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
