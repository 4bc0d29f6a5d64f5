// Package process runs a node as a process. It reads the sut.NodeConfig, starts the node,
// prints the ready line, takes new wirings while the node serves, and drains the node at
// its end.
//
// It implements the contract that sut.NodeConfig describes. Most important, a node exits
// when its standard input closes, so no process outlives its parent. The package knows no
// engine: package node starts each engine. For that this package has listeners, groups of
// HTTP servers, and the supervision of a native server.
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
	"github.com/stagebench/stagebench/sut/conns"
)

// Node is what a function that starts an engine gets.
type Node struct {
	Config   sut.NodeConfig
	Log      *slog.Logger
	Registry *prometheus.Registry // the metrics at the admin address
}

// Component is the running engine of a node.
type Component struct {
	Ready sut.Ready // Run fills in the name and the admin address
	// Died delivers the error of a component that ended without Stop.
	Died chan error
	// Stop drains the component and ends it. It returns when ctx ends at the latest.
	Stop func(ctx context.Context) error
	// Operators answers at the admin address, which also answers sut.WiringPath. The
	// address works until all other parts of the node have stopped; nil = the node has no
	// admin address.
	Operators http.Handler
	// Rewire changes the neighbours of the component. It returns when all calls to
	// draining and to removed nodes have ended, or when ctx ends. An error that wraps
	// sut.ErrWiring means that nothing changed. Calls are never concurrent; nil = the
	// component has no neighbours.
	Rewire func(ctx context.Context, next sut.Wiring) error
}

// Start starts the engine of a node.
type Start func(ctx context.Context, n Node) (Component, error)

// orphanDrain bounds the drain of a node whose parent died. Nobody waits for its answers.
const orphanDrain = 500 * time.Millisecond

// gcPercent lets the heap of a node grow fivefold between two collections. Hosts have a
// tenth of a core and half a gigabyte, so CPU is scarcer than memory.
const gcPercent = 400

// memoryShare is the share of its memory above which a node collects more often, whatever gcPercent says. The rest is
// for what the collector does not count, and for what is allocated while it runs.
const memoryShare = 0.7

// Run runs a node until its end. The node drains when ctx ends. in is its standard
// input, out takes the ready line, and errs takes the log.
func Run(ctx context.Context, in io.Reader, out, errs io.Writer, start Start) error {
	config, err := decodeConfig(in)
	if err != nil {
		return fmt.Errorf("node configuration on standard input: %w\n"+
			"nodes are started by stagebench itself: see stagebench up --help", err)
	}
	log := slog.New(slog.NewJSONHandler(errs, nil)).With("node", config.Node, "role", string(config.Role))
	runtime.GOMAXPROCS(max(config.Procs, 1))
	debug.SetGCPercent(gcPercent)
	if config.MemoryBytes > 0 {
		debug.SetMemoryLimit(int64(memoryShare * float64(config.MemoryBytes)))
	}

	orphaned := make(chan struct{})
	go func() {
		_, _ = io.Copy(io.Discard, in) // returns when the parent ends
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
		return errors.Join(fmt.Errorf("print the ready line of node %s: %w", config.Node, err), c.Stop(ctx))
	}
	log.Info("ready", "address", c.Ready.Address, "version", c.Ready.Version)
	return n.waitAndDrain(ctx, c, orphaned)
}

// withAdmin adds the admin address. Its server stops last, so that operators can watch
// the drain.
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
	bound, err := conns.New(n.ConnsWithin(HTTPConnBytes, maxAdminConns), nil)
	if err != nil {
		return c, errors.Join(err, listener.Close(), c.Stop(context.Background()))
	}
	h := &HTTP{Died: c.Died}
	h.Serve(listener, &http.Server{Handler: guarded(mux, n.Config.Secret, n.Log)}, bound)
	stop := c.Stop
	c.Stop = func(ctx context.Context) error { return errors.Join(stop(ctx), h.Stop(ctx)) }
	c.Ready.Admin = listener.Addr().String()
	return c, nil
}

// waitAndDrain waits until ctx ends, the parent dies or the component dies. It then
// drains the component, unless that died.
func (n Node) waitAndDrain(ctx context.Context, c Component, orphaned <-chan struct{}) error {
	drain := time.Duration(n.Config.DrainSeconds * float64(time.Second))
	select {
	case err := <-c.Died:
		return fmt.Errorf("node %s: %w", n.Config.Node, err)
	case <-ctx.Done():
		n.Log.Info("draining", "bound_seconds", n.Config.DrainSeconds)
	case <-orphaned:
		n.Log.Info("standard input closed: the parent has ended")
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

// Listen binds the address and the port of the node's configuration.
func (n Node) Listen() (net.Listener, error) { return n.listen(n.Config.Port) }

// listen binds a port of the node's address; 0 = any free port.
func (n Node) listen(port int) (net.Listener, error) {
	return net.Listen("tcp", net.JoinHostPort(n.Config.Listen, strconv.Itoa(port)))
}

// ConnsWithin returns the maximum number of connections of which each takes up to that many bytes. It is the number
// that fits into a third of the node's memory, and at most the given one. The rest is for what a complete request
// takes, and for the program.
func (n Node) ConnsWithin(bytes int64, most int) int {
	if n.Config.MemoryBytes == 0 {
		return most
	}
	return int(max(min(n.Config.MemoryBytes/3/bytes, int64(most)), 1))
}

// FreePort returns the port of the node's configuration, or a free port if that is 0. No
// other host uses this address, so nobody else takes the port before the native server.
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

// Operators returns a handler of /metrics and /healthz. The caller may add endpoints.
func (n Node) Operators() *http.ServeMux {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(n.Registry, promhttp.HandlerOpts{}))
	mux.Handle("GET "+sut.HealthPath, Health())
	return mux
}

// Health returns a handler that says that the process is alive.
func Health() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
}
