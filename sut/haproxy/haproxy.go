// Package haproxy describes a native HAProxy server, so that somebody else can start
// it: its files, its command, its configuration text, and what it is asked and told
// over its runtime socket.
//
// It starts nothing itself, but the program for its version and for a check of its
// configuration. The kit in sut/balance/balancetest holds it to the behaviour of
// every balancer.
//
// The order of calls is Find, New, Prepare, the started Command, Ready until it
// returns nil, then Status and SetUpstreams at any time, and StopSignal. All methods
// but Prepare may be called concurrently.
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
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/sut"
)

// Config says which server to describe. The zero value of a field means its default,
// where one is given.
type Config struct {
	sut.Balancing
	// Log receives the requests that LogRequests says; default nowhere.
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
	// Drain is how long requests may take to finish once the server was told to
	// stop; default 10 s.
	Drain time.Duration
}

// defaults fills what was left at zero.
func (c Config) defaults() Config {
	c.Balancing = c.Complete()
	c.Log = cmp.Or(c.Log, slog.New(slog.DiscardHandler))
	c.Procs = cmp.Or(c.Procs, 1)
	c.Drain = cmp.Or(c.Drain, 10*time.Second)
	return c
}

// validate says what is wrong with a configuration that has its defaults.
func (c Config) validate() error {
	switch {
	case c.Install.Path == "":
		return errors.New("no HAProxy installation given\nuse the one that Find returns")
	case c.Dir == "":
		return errors.New("no directory given")
	case c.Listen == nil:
		return errors.New("no address to listen on")
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("port %d: want 1 to 65535, chosen by the caller", c.Port)
	case c.Procs < 1:
		return fmt.Errorf("procs %d: want at least 1", c.Procs)
	case c.Drain < time.Second:
		return fmt.Errorf("drain %v: want at least 1s", c.Drain)
	case c.Policy == sut.PolicyLeastResponseTime:
		return fmt.Errorf("policy %s: HAProxy has no such algorithm", c.Policy)
	}
	return c.Validate()
}

// Server describes one server. Everything that it keeps is in its directory.
//
// Each route has a backend of its own, and the rest one called web. In all of them
// every host has a place, and there are places in reserve for hosts that come
// later: those that a backend has no use for are in maintenance. So a membership
// is a matter of the server's runtime interface, and no connection is lost for it.
// A running server has room for 16 hosts with names that it was not started with,
// and keeps the conditions of its routes; what it says when all hosts of a route
// are down names those that it was started with. (It could be told to add
// servers, too, but HAProxy 2.6 takes none with a cookie then.)
//
// It differs from the embedded balancer in how hosts are ejected: HAProxy counts
// every answer of 500 and more but 501 and 505, also a 503 of a host that says it is
// full, and an ejected host is back with its next good health check. And a host that
// gets a new address finishes what it has at the old one without anybody waiting.
//
// Its weights are whole numbers: those of its hosts count in tenths, or coarser
// where the largest is above 25.6.
//
// It also differs in what a client sees when a host dies while it works on a request.
// The embedded balancer answers 502. HAProxy does so on a connection's first request
// only; on a later one it closes the connection without an answer, and leaves it to
// the client to repeat the request. A client that does so by itself, as Go's does for
// GET, hides the failure from whoever uses it.
type Server struct {
	cfg    Config
	places *places
	// telling is held while the server is told of its hosts, so that of two at
	// once the later one is in force at the end.
	telling sync.Mutex
}

// New describes a server. Prepare checks the configuration.
func New(cfg Config) *Server {
	cfg = cfg.defaults()
	return &Server{cfg: cfg, places: newPlaces(cfg.Balancing)}
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
	text := h.cfg.render(connectionsWithin(files.Max), h.places.reset())
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

// command prepares a call of the program in its directory. The paths that it is
// given are relative to that, because the path of a Unix socket is limited to
// 107 bytes and the directory's may be longer.
func (h *Server) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.cfg.Install.Path, args...)
	cmd.Dir = h.cfg.Dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	return cmd
}

// Ready asks once whether the server serves: nil when it accepts clients.
func (h *Server) Ready(ctx context.Context) error {
	rows, err := h.rows(ctx)
	if err != nil {
		return fmt.Errorf("haproxy: %w", err)
	}
	if !slices.ContainsFunc(rows, func(row map[string]string) bool { return row["svname"] == "FRONTEND" && row["status"] == "OPEN" }) {
		return errors.New("haproxy: it does not listen yet")
	}
	return nil
}

// StopSignal is HAProxy's soft stop: it stops listening, closes idle
// connections, lets requests finish within Config.Drain, and ends. A connection
// on which nothing was ever asked counts as busy, and so do all of layer 4.
func (h *Server) StopSignal() os.Signal { return syscall.SIGUSR1 }

// Version asks the installed program for its version, such as "2.6.12".
func (h *Server) Version(ctx context.Context) (string, error) {
	version, err := askVersion(ctx, h.cfg.Install.Path)
	if err != nil {
		return "", fmt.Errorf("haproxy: version: %w", err)
	}
	return version, nil
}

// Address is the host:port that the server listens on.
func (h *Server) Address() string {
	return net.JoinHostPort(h.cfg.Listen.String(), strconv.Itoa(h.cfg.Port))
}

// Status asks the server for its hosts and what it has done so far.
func (h *Server) Status(ctx context.Context) (sut.BalancerStatus, error) {
	rows, err := h.rows(ctx)
	if err != nil {
		return sut.BalancerStatus{}, err
	}
	c := h.cfg
	status := sut.BalancerStatus{Node: c.Node, Engine: sut.HAProxy, Layer: c.Layer, Policy: c.Policy, Sticky: c.Sticky}
	return status, h.places.fill(&status, rows)
}

// oldest is the oldest version that is supported, major and minor: Debian
// 12's.
const oldestMajor, oldestMinor = 2, 6

// howToInstall is the second line of every error about a missing server.
const howToInstall = "apt-get install haproxy"

// Install is an installed HAProxy.
type Install struct {
	// Path is the program.
	Path string
	// Version is what it says of itself, such as "2.6.12".
	Version string
}

// Find looks for an installed server: on PATH, then where packages put
// it, which an ordinary user's PATH leaves out. The second line of its error
// says how to get one.
func Find() (Install, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return choose([]string{"haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"}, func(path string) (Install, error) {
		path, err := exec.LookPath(path)
		if err != nil {
			return Install{}, err
		}
		version, err := askVersion(ctx, path)
		return Install{Path: path, Version: version}, err
	})
}

// choose picks the first that is there and new enough.
func choose(paths []string, look func(path string) (Install, error)) (Install, error) {
	var old *Install
	for _, path := range paths {
		install, err := look(path)
		if err != nil {
			continue
		}
		if newEnough(install.Version) {
			return install, nil
		}
		old = &install
	}
	if old != nil {
		return Install{}, fmt.Errorf("haproxy: found only version %s at %s, want %d.%d or newer\n%s",
			old.Version, old.Path, oldestMajor, oldestMinor, howToInstall)
	}
	return Install{}, errors.New("haproxy: not found on PATH, in /usr/sbin or /usr/local/sbin\n" + howToInstall)
}

// askVersion asks a program for its version.
func askVersion(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "-v").Output()
	if err != nil {
		return "", err
	}
	return parseVersion(string(out))
}

// parseVersion reads "HAProxy version 2.6.12-1+deb12u4 2026/10/17"; older
// ones say "HA-Proxy version".
func parseVersion(text string) (string, error) {
	match := regexp.MustCompile(`^HA-?Proxy version (\d+\.\d+(?:\.\d+)?)`).FindStringSubmatch(text)
	if match == nil {
		line, _, _ := strings.Cut(text, "\n")
		return "", fmt.Errorf("%q is no version of HAProxy", line)
	}
	return match[1], nil
}

// newEnough compares a version with the oldest supported one.
func newEnough(version string) bool {
	var major, minor int
	_, _ = fmt.Sscanf(version, "%d.%d", &major, &minor) // parseVersion has found both
	return major > oldestMajor || major == oldestMajor && minor >= oldestMinor
}
