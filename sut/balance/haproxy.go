package balance

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/sut"
)

// HAProxyConfig says which native balancer to describe. The zero value of a
// field means its default, where one is given.
type HAProxyConfig struct {
	// Config is what both engines share.
	Config
	// Install is the program to run, as FindHAProxy returned it.
	Install HAProxyInstall
	// Dir is the server's private directory. It is made when it does not exist.
	Dir string
	// Listen is the address to bind.
	Listen net.IP
	// Port is the TCP port to bind, never 0.
	Port int
	// Procs is the number of threads; default 1.
	Procs int
	// MaxConnections bounds the clients' connections; default 10,000, or less
	// where the limit on open files allows only less. Those above it wait.
	MaxConnections int
	// Drain is how long requests may take to finish once the server was told to
	// stop; default 10 s.
	Drain time.Duration
}

// defaults fills what was left at zero.
func (c HAProxyConfig) defaults() HAProxyConfig {
	c.Config = c.Config.defaults()
	setDefault(&c.Procs, 1)
	setDefault(&c.MaxConnections, 10_000)
	setDefault(&c.Drain, 10*time.Second)
	return c
}

// validate says what is wrong with a configuration that has its defaults.
func (c HAProxyConfig) validate() error {
	switch {
	case c.Install.Path == "":
		return errors.New("no HAProxy installation given\nuse the one that FindHAProxy returns")
	case c.Dir == "":
		return errors.New("no directory given")
	case c.Listen == nil:
		return errors.New("no address to listen on")
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("port %d: want 1 to 65535, chosen by the caller", c.Port)
	case c.Procs < 1:
		return fmt.Errorf("procs %d: want at least 1", c.Procs)
	case c.MaxConnections < 1:
		return fmt.Errorf("max connections %d: want at least 1", c.MaxConnections)
	case c.Drain < time.Second:
		return fmt.Errorf("drain %v: want at least 1s", c.Drain)
	}
	if c.Policy == PolicyLeastResponseTime {
		return fmt.Errorf("policy %s: HAProxy has no such algorithm", c.Policy)
	}
	return c.Config.validate()
}

// HAProxy describes one HAProxy server. It never starts or supervises it.
//
// The order of calls is NewHAProxy, Prepare, Command, Ready until it returns
// nil. Everything that the server keeps is in its directory.
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
// It differs from Balancer in how hosts are ejected: HAProxy counts every answer
// of 500 and more but 501 and 505, also a 503 of a host that says it is full, and
// an ejected host is back with its next good health check. And a host that gets a
// new address finishes what it has at the old one without anybody waiting for it.
//
// Its weights are whole numbers: those of a Config count in tenths, or coarser
// where the largest is above 25.6.
//
// It also differs in what a client sees when a host dies while it works
// on a request. Balancer answers 502. HAProxy does so on a connection's first
// request only; on a later one it closes the connection without an answer, and
// leaves it to the client to repeat the request. A client that does so by
// itself, as Go's does for GET, hides the failure from whoever uses it.
type HAProxy struct {
	cfg    HAProxyConfig
	places *places
	// telling is held while the server is told of a membership, so that of two at
	// once the later one is in force at the end.
	telling sync.Mutex
	// registered is the result of putting the metrics into the registry; Prepare
	// reports it.
	registered error
}

// NewHAProxy describes a server and puts its metrics into the registry. Prepare
// checks the configuration.
func NewHAProxy(cfg HAProxyConfig) *HAProxy {
	cfg = cfg.defaults()
	h := &HAProxy{cfg: cfg, places: newPlaces(cfg.Config)}
	h.registered = h.cfg.Registry.Register(collector{h.Status})
	return h
}

// Prepare writes the server's configuration into its directory and has the
// server check it. It may be called again before a restart.
func (h *HAProxy) Prepare(ctx context.Context) error {
	if err := h.cfg.validate(); err != nil {
		return fmt.Errorf("haproxy: %w", err)
	}
	if h.registered != nil {
		return fmt.Errorf("haproxy: metrics: %w", h.registered)
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
	text := h.cfg.render(connectionsWithin(h.cfg.MaxConnections, files.Max), h.places.reset())
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
func (h *HAProxy) Command() *exec.Cmd {
	return h.command(context.Background(), "-db", "-f", configName)
}

// command prepares a call of the program in its directory. The paths that it is
// given are relative to that, because the path of a Unix socket is limited to
// 107 bytes and the directory's may be longer.
func (h *HAProxy) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, h.cfg.Install.Path, args...)
	cmd.Dir = h.cfg.Dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	return cmd
}

// Ready asks once whether the server serves: nil when it accepts clients.
func (h *HAProxy) Ready(ctx context.Context) error {
	rows, err := h.rows(ctx)
	if err != nil {
		return fmt.Errorf("haproxy: %w", err)
	}
	for _, row := range rows {
		if row["svname"] == "FRONTEND" && row["status"] == "OPEN" {
			return nil
		}
	}
	return errors.New("haproxy: it does not listen yet")
}

// StopSignal is HAProxy's soft stop: it stops listening, closes idle
// connections, lets requests finish within Config.Drain, and ends. A connection
// on which nothing was ever asked counts as busy, and so do all of layer 4.
func (h *HAProxy) StopSignal() os.Signal { return syscall.SIGUSR1 }

// Version asks the installed program for its version, such as "2.6.12".
func (h *HAProxy) Version(ctx context.Context) (string, error) {
	version, err := haproxyVersion(ctx, h.cfg.Install.Path)
	if err != nil {
		return "", fmt.Errorf("haproxy: version: %w", err)
	}
	return version, nil
}

// Address is the host:port that the server listens on.
func (h *HAProxy) Address() string {
	return net.JoinHostPort(h.cfg.Listen.String(), strconv.Itoa(h.cfg.Port))
}

// Admin is the operators' side: /metrics, /healthz, /readyz and /status, under
// the names that Balancer has, translated from the server's own statistics, and
// PUT of sut.MembershipPath.
func (h *HAProxy) Admin() http.Handler {
	mux := admin(h.cfg.Registry, h.Status)
	mux.Handle("PUT "+sut.MembershipPath, membershipHandler(h.SetMembership))
	return mux
}

// Status asks the server for its hosts and what it has done so far.
func (h *HAProxy) Status(ctx context.Context) (Status, error) {
	rows, err := h.rows(ctx)
	if err != nil {
		return Status{}, err
	}
	status := Status{Node: h.cfg.Node, Engine: sut.HAProxy, Layer: h.cfg.Layer, Policy: h.cfg.Policy, Sticky: h.cfg.Sticky}
	return status, status.fill(rows, h.places)
}

// minHAProxy is the oldest version that is supported, major and minor: Debian
// 12's.
const minHAProxyMajor, minHAProxyMinor = 2, 6

// howToInstallHAProxy is the second line of every error about a missing server.
const howToInstallHAProxy = "apt-get install haproxy"

// HAProxyInstall is an installed HAProxy.
type HAProxyInstall struct {
	// Path is the program.
	Path string
	// Version is what it says of itself, such as "2.6.12".
	Version string
}

// FindHAProxy looks for an installed server: on PATH, then where packages put
// it, which an ordinary user's PATH leaves out. The second line of its error
// says how to get one.
func FindHAProxy() (HAProxyInstall, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	return chooseHAProxy([]string{"haproxy", "/usr/sbin/haproxy", "/usr/local/sbin/haproxy"}, func(path string) (HAProxyInstall, error) {
		path, err := exec.LookPath(path)
		if err != nil {
			return HAProxyInstall{}, err
		}
		version, err := haproxyVersion(ctx, path)
		return HAProxyInstall{Path: path, Version: version}, err
	})
}

// chooseHAProxy picks the first that is there and new enough.
func chooseHAProxy(paths []string, look func(path string) (HAProxyInstall, error)) (HAProxyInstall, error) {
	var old *HAProxyInstall
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
		return HAProxyInstall{}, fmt.Errorf("haproxy: found only version %s at %s, want %d.%d or newer\n%s",
			old.Version, old.Path, minHAProxyMajor, minHAProxyMinor, howToInstallHAProxy)
	}
	return HAProxyInstall{}, errors.New("haproxy: not found on PATH, in /usr/sbin or /usr/local/sbin\n" + howToInstallHAProxy)
}

// haproxyVersion asks a program for its version.
func haproxyVersion(ctx context.Context, path string) (string, error) {
	out, err := exec.CommandContext(ctx, path, "-v").Output()
	if err != nil {
		return "", err
	}
	return parseHAProxyVersion(string(out))
}

// parseHAProxyVersion reads "HAProxy version 2.6.12-1+deb12u4 2026/10/17"; older
// ones say "HA-Proxy version".
func parseHAProxyVersion(text string) (string, error) {
	match := regexp.MustCompile(`^HA-?Proxy version (\d+\.\d+(?:\.\d+)?)`).FindStringSubmatch(text)
	if match == nil {
		line, _, _ := strings.Cut(text, "\n")
		return "", fmt.Errorf("%q is no version of HAProxy", line)
	}
	return match[1], nil
}

// newEnough compares a version with the oldest supported one.
func newEnough(version string) bool {
	parts := strings.Split(version, ".")
	major, _ := strconv.Atoi(parts[0])
	minor := 0
	if len(parts) > 1 {
		minor, _ = strconv.Atoi(parts[1])
	}
	return major > minHAProxyMajor || major == minHAProxyMajor && minor >= minHAProxyMinor
}
