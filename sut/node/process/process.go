// Package process is the life of a node as a process: it reads a sut.NodeConfig, has
// the node started, says that it is ready, takes other neighbours while it serves, and
// ends it in order.
//
// It keeps the contract that sut.NodeConfig describes: above all, a node dies when its
// standard input closes, so that no orphan can exist. It knows no engine. Package node
// says how each is started, with what this package offers for that: listeners, HTTP
// servers, and the supervision of a native server.
package process

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

// Node is what an engine is started with.
type Node struct {
	Config   sut.NodeConfig
	Log      *slog.Logger
	Registry *prometheus.Registry // of the metrics at its admin address
}

// Component is the running inside of a node.
type Component struct {
	Ready sut.Ready // Run fills in the name and the admin address
	// Died delivers the error of a component that ends without being asked.
	Died chan error
	// Stop drains, within the time that ctx leaves.
	Stop func(ctx context.Context) error
	// Operators is what the admin address answers besides sut.WiringPath, until all the
	// rest has stopped; nil = the node has no such address.
	Operators http.Handler
	// Rewire has the component act by another wiring, and returns when nothing goes any
	// more to who is not listed or draining, or when ctx ends. An error that wraps
	// sut.ErrWiring means that nothing has changed. It is called once at a time; nil = no
	// neighbour matters to the component.
	Rewire func(ctx context.Context, next sut.Wiring) error
}

// Start starts what a configuration asks for.
type Start func(ctx context.Context, n Node) (Component, error)

// orphanDrain bounds the draining when the parent has died: nobody waits for
// the answers any more.
const orphanDrain = 500 * time.Millisecond

// gcPercent lets the small heaps of nodes grow before they are collected. Hosts
// have a tenth of a core and half a gigabyte: CPU is what they are short of.
const gcPercent = 400

// Run is the whole life of a node. ctx ends when it is to drain; in is its
// standard input, out takes the ready line, and logs go to errs.
func Run(ctx context.Context, in io.Reader, out, errs io.Writer, start Start) error {
	config, err := decodeConfig(in)
	if err != nil {
		return fmt.Errorf("node configuration on standard input: %w\n"+
			"nodes are started by stagebench itself: see stagebench up --help", err)
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
	n := Node{Config: config, Log: log, Registry: newRegistry()}
	c, err := start(starting, n)
	if err == nil {
		c, err = n.withAdmin(c)
	}
	if err != nil {
		return fmt.Errorf("start node %s: %w", config.Node, err)
	}
	if err := json.NewEncoder(out).Encode(c.Ready); err != nil {
		return errors.Join(fmt.Errorf("say that node %s is ready: %w", config.Node, err), c.Stop(ctx))
	}
	log.Info("ready", "address", c.Ready.Address, "version", c.Ready.Version)
	return n.live(ctx, c, orphaned)
}

// withAdmin adds the admin address. It goes last: who drains a node may look at it.
func (n Node) withAdmin(c Component) (Component, error) {
	c.Ready.Node = n.Config.Node
	if c.Operators == nil {
		return c, nil
	}
	listener, err := n.listen(0)
	if err != nil {
		return c, errors.Join(err, c.Stop(context.Background()))
	}
	neighbours := newNeighbours(n.Config.Wiring, c.Rewire)
	mux := http.NewServeMux()
	mux.Handle("/", c.Operators)
	mux.HandleFunc("GET "+sut.WiringPath, neighbours.show)
	mux.HandleFunc("PUT "+sut.WiringPath, neighbours.change)
	h := &HTTP{Died: c.Died}
	h.Serve(listener, &http.Server{Handler: mux})
	stop := c.Stop
	c.Stop = func(ctx context.Context) error { return errors.Join(stop(ctx), h.Stop(ctx)) }
	c.Ready.Admin = listener.Addr().String()
	return c, nil
}

// live waits for the end and drains.
func (n Node) live(ctx context.Context, c Component, orphaned <-chan struct{}) error {
	drain := time.Duration(n.Config.DrainSeconds * float64(time.Second))
	select {
	case err := <-c.Died:
		return fmt.Errorf("node %s: %w", n.Config.Node, err)
	case <-ctx.Done():
		n.Log.Info("draining", "bound_seconds", n.Config.DrainSeconds)
	case <-orphaned:
		n.Log.Info("the parent has gone")
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
	err := c.Stop(bounded)
	if err != nil && !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, context.Canceled) {
		return fmt.Errorf("stop node %s: %w", n.Config.Node, err)
	}
	return nil
}

// Listen binds the node's own address, on its own port.
func (n Node) Listen() (net.Listener, error) { return n.listen(n.Config.Port) }

// listen binds a port of the node's address; port 0 is any free one.
func (n Node) listen(port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort(n.Config.Listen, strconv.Itoa(port)))
}

// FreePort is the node's own port, or one that nobody has. The host's address
// is its own, so nobody else takes it before a native server does.
func (n Node) FreePort() (int, error) {
	if n.Config.Port != 0 {
		return n.Config.Port, nil
	}
	listener, err := n.listen(0)
	if err != nil {
		return 0, err
	}
	return listener.Addr().(*net.TCPAddr).Port, listener.Close()
}

func newRegistry() *prometheus.Registry {
	r := prometheus.NewRegistry()
	r.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return r
}

// Operators serves metrics and liveness, to which more may be added.
func (n Node) Operators() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.Registry, promhttp.HandlerOpts{}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	return mux
}
