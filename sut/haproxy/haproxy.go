// Package haproxy describes a native HAProxy server: its files, its command, its
// configuration, and the commands on its runtime socket. The caller starts the server.
//
// The package runs the program only to get its version and to check a configuration. The
// test kit in sut/balance/balancetest checks that it behaves like every other balancer.
//
// The order of calls is Find, New, Prepare, then the caller starts Command, then Ready
// until it returns nil, then Status and SetUpstreams at any time, and StopSignal. All
// methods except Prepare may be called concurrently.
package haproxy

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/program"
)

// Config is the configuration of a Server. The zero value of a field means its default,
// where one is given.
type Config struct {
	sut.Balancing
	// Log receives the requests that LogRequests selects. Default: no log.
	Log *slog.Logger
	// Install is the program to run, as Find returned it.
	Install Install
	// Dir is the server's private directory. It is made when it does not exist.
	Dir string
	// Listen is the address to bind.
	Listen net.IP
	// Port is the TCP port to bind, never 0.
	Port int
	// Procs is the number of threads; default 1.
	Procs int
	// MaxConnections limits the connections of clients; more connections wait until they are accepted. The limit on open
	// files may allow fewer. Default 10,000.
	MaxConnections int
	// Drain bounds the time for requests in flight after the stop signal; default 10 s.
	Drain time.Duration
}

// defaults returns a copy in which fields that are not set have their defaults.
func (c Config) defaults() Config {
	c.Balancing = c.Complete()
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	c.Procs = cmp.Or(c.Procs, 1)
	c.MaxConnections = cmp.Or(c.MaxConnections, 10_000)
	c.Drain = cmp.Or(c.Drain, 10*time.Second)
	return c
}

// validate returns the first error in a Config that defaults returned.
func (c Config) validate() error {
	switch {
	case c.Install.Path == "":
		return errors.New("no HAProxy installation given\npass the Install that Find returns")
	case c.Dir == "":
		return errors.New("no directory given")
	case c.Listen == nil:
		return errors.New("no address to listen on")
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("port %d: want 1 to 65535", c.Port)
	case c.Procs < 1:
		return fmt.Errorf("procs %d: want at least 1", c.Procs)
	case c.MaxConnections < 1:
		return fmt.Errorf("%d connections: want at least 1", c.MaxConnections)
	case c.Drain < time.Second:
		return fmt.Errorf("drain %v: want at least 1s", c.Drain)
	case c.Policy == sut.PolicyLeastResponseTime:
		return fmt.Errorf("policy %s: HAProxy has no such algorithm", c.Policy)
	}
	return c.Validate()
}

// Server describes one HAProxy server. All its files are in its directory.
//
// Each route has a backend. All other requests go to the backend web. Each backend has a
// slot for every host and spare slots for hosts that are added later. A slot that a
// backend does not use is in maintenance. So the hosts can change over the runtime socket
// without a restart and without a lost connection. (HAProxy 2.6 can also add servers at
// run time, but not with a cookie.) A running server has these limits:
//   - at most 16 new host names can be added after the start: for more, SetUpstreams
//     returns an error and the server must be restarted;
//   - the conditions of its routes cannot change;
//   - its 503 for a route of which no host is up lists the hosts that the route had at the
//     start.
//
// It differs from the embedded balancer in these points:
//   - An ejected host is back after its next passed health check. Failed connections in a row and failed requests in
//     a row are counted apart.
//   - When a host gets a new address, SetUpstreams does not wait for its requests at the
//     old address.
//   - Weights are multiples of 0.1, or coarser if the largest weight is above 25.6,
//     because HAProxy's weights are whole numbers up to 256.
//   - When a host dies during a request, HAProxy answers 502 only to the first request of
//     a client's connection. For a later request it closes the connection without a
//     response, and the client may repeat the request. Go's client repeats a GET, which
//     hides the failure.
type Server struct {
	program.Server // has Address and Version
	cfg            Config
	slots          *slots
	// streaks counts the failed requests in a row.
	streaks streaks
	// changing is held while commands change the hosts. Without it, two concurrent
	// changes could leave a mixture of both.
	changing sync.Mutex
	unsticky atomic.Bool // Upstreams.Unsticky, as the running server has it
}

// New describes a server. Prepare checks the configuration.
func New(cfg Config) *Server {
	cfg = cfg.defaults()
	return &Server{
		Server: program.NewServer(cfg.Install, cfg.Listen, cfg.Port), cfg: cfg,
		slots: newSlots(cfg.Balancing), streaks: streaks{slots: map[string]streak{}},
	}
}

// Prepare writes the server's configuration into its directory and has the
// server check it. It may be called again before a restart.
func (h *Server) Prepare(ctx context.Context) error {
	if err := h.cfg.validate(); err != nil {
		return fmt.Errorf("haproxy: %w", err)
	}
	dir, err := filepath.Abs(h.cfg.Dir)
	if err != nil {
		return fmt.Errorf("haproxy: directory: %w", err)
	}
	h.cfg.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("haproxy: directory: %w", err)
	}
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("haproxy: limit on open files: %w", err)
	}
	text := h.cfg.render(connectionsWithin(files.Max, h.cfg.MaxConnections), h.slots.reset())
	path := filepath.Join(dir, configName)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return fmt.Errorf("haproxy: configuration: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("haproxy: configuration: %w", err)
	}
	if out, err := h.command(ctx, "-c", "-f", configName).CombinedOutput(); err != nil {
		return fmt.Errorf("haproxy: configuration %s: %w\n%s", path, err, out)
	}
	return nil
}

// Command returns the command that runs the server in the foreground, without a
// master process, not started. It logs to its standard error. The caller may
// add to its SysProcAttr.
func (h *Server) Command() *exec.Cmd {
	return h.command(context.Background(), "-db", "-f", configName)
}

// command returns a command that runs the program in its directory. Its paths are
// relative, because the path of a Unix socket is limited to 107 bytes and the path of the
// directory may be longer.
func (h *Server) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.cfg.Install.Path, args...)
	cmd.Dir = h.cfg.Dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	return cmd
}

// Ready probes the server once. It returns nil if the server accepts clients.
func (h *Server) Ready(ctx context.Context) error {
	rows, err := h.rows(ctx)
	if err != nil {
		return fmt.Errorf("haproxy: %w", err)
	}
	if !slices.ContainsFunc(rows, func(row map[string]string) bool {
		return row["svname"] == "FRONTEND" && row["status"] == "OPEN"
	}) {
		return errors.New("haproxy: the server does not listen yet")
	}
	return nil
}

// StopSignal is the signal for HAProxy's soft stop. The server stops listening, closes
// idle connections, waits up to Config.Drain for requests in flight, and ends. It also
// waits for a connection without any request yet, and for all connections of layer 4.
func (h *Server) StopSignal() os.Signal { return syscall.SIGUSR1 }

// Status returns the server's hosts and counters.
func (h *Server) Status(ctx context.Context) (sut.BalancerStatus, error) {
	rows, err := h.rows(ctx)
	if err != nil {
		return sut.BalancerStatus{}, err
	}
	c := h.cfg
	status := sut.BalancerStatus{
		Node: c.Node, Engine: sut.HAProxy, Layer: c.Layer, Policy: c.Policy, Sticky: c.Sticky && !h.unsticky.Load(),
	}
	return status, h.slots.fill(&status, rows)
}

// Install is an installed HAProxy.
type Install = program.Install

// installed describes the program. The oldest supported version is that of Debian 12.
func installed() program.Program {
	return program.Program{
		Name: "haproxy", Flag: "-v", Package: "haproxy", Oldest: [2]int{2, 6},
		// Old versions print "HA-Proxy version".
		Version: regexp.MustCompile(`^HA-?Proxy version (\d+\.\d+(?:\.\d+)?)`),
	}
}

// Find finds an installed server. The second line of its error says how to install HAProxy.
func Find() (Install, error) { return installed().Find() }
