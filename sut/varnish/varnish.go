// Package varnish describes a native Varnish server as an edge: its files, its command, its configuration in VCL, and
// the commands on its management interface. The caller starts the server.
//
// The package runs programs only to get the version and to read statistics. The test kit in sut/edge/edgetest checks
// that the server behaves like every other edge; Differences lists where it does not. Sizes are in bytes.
//
// The order of calls is Find, New, Prepare, then the caller starts Command, then Ready until it returns nil, then
// SetOrigins, Purge and Figures at any time, and StopSignal. All methods except Prepare may be called concurrently.
package varnish

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/program"
)

// Config is the configuration of a Server. The zero value of a field means its default, where one is given.
type Config struct {
	sut.EdgeConfig
	// Install is the program to run, as Find returned it.
	Install Install
	// Dir is the server's private directory. It is made when it does not exist.
	Dir string
	// Listen is the address to bind. The management interface listens on it, too, at a port that the kernel picks. It
	// needs a secret that only the owner of Dir can read.
	Listen net.IP
	// Port is the TCP port to bind, never 0.
	Port int
	// MaxThreads limits the requests at the same time; a request that is no hit takes two threads. Default 1000.
	MaxThreads int
	// Drain bounds the time for requests in flight after a change of the origins; default 10 s.
	Drain time.Duration
}

func (c Config) defaults() Config {
	c.EdgeConfig = c.Complete()
	c.MaxThreads = cmp.Or(c.MaxThreads, 1000)
	c.Drain = cmp.Or(c.Drain, 10*time.Second)
	return c
}

// minThreads is the number of threads at the start.
const minThreads = 20

// validate returns the first error in a Config that defaults returned.
func (c Config) validate() error {
	switch {
	case c.Install.Path == "":
		return errors.New("no Varnish installation given\npass the Install that Find returns")
	case c.Dir == "":
		return errors.New("no directory given")
	case c.Listen == nil:
		return errors.New("no address to listen on")
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("port %d: want 1 to 65535", c.Port)
	case c.MaxThreads < 2*minThreads:
		return fmt.Errorf("%d threads: want at least %d", c.MaxThreads, 2*minThreads)
	case c.Drain < time.Second:
		return fmt.Errorf("drain %v: want at least 1s", c.Drain)
	}
	return c.Validate()
}

// Server describes one Varnish server. All its files are in its directory.
//
// It differs from other edges in these points, which the kit does not see:
//   - It needs a C compiler, which Debian's package brings, at the start and for each change of the origins.
//   - second_hit marks a key in the memory for what is not stored, for an hour. Requests for a key that come before the
//     first response is stored are not collapsed.
//   - Bodies on their way and such marks take memory in addition to the budget.
//   - Its origins see the field x-edge-stale in a request for a stale response.
//   - It has no graceful stop: the stop signal cuts off requests in flight.
type Server struct {
	program.Server // has Address, StopSignal and Version
	cfg            Config

	// changing is held while the configuration changes. It guards origins and loaded.
	changing sync.Mutex
	origins  []sut.Peer
	loaded   int // number of the configuration in use
}

// New returns a description of a server. Prepare returns an error if the configuration is invalid.
func New(cfg Config) *Server {
	cfg = cfg.defaults()
	server := program.NewServer(cfg.Install.Install, cfg.Listen, cfg.Port)
	return &Server{Server: server, cfg: cfg, origins: cfg.Origins}
}

// Names of the files in the directory of a server.
const (
	secretName = "secret"
	workName   = "work"
)

// Prepare writes the server's configuration into its directory, with a new secret for the management interface. It may
// be called again before a restart.
func (s *Server) Prepare(context.Context) error {
	if err := s.cfg.validate(); err != nil {
		return fmt.Errorf("varnish: %w", err)
	}
	dir, err := filepath.Abs(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("varnish: directory: %w", err)
	}
	s.cfg.Dir = dir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("varnish: directory: %w", err)
	}
	if err := os.RemoveAll(filepath.Join(dir, workName)); err != nil {
		return fmt.Errorf("varnish: directory: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, secretName), []byte(rand.Text()+"\n"), 0o600); err != nil {
		return fmt.Errorf("varnish: secret: %w", err)
	}
	s.changing.Lock()
	defer s.changing.Unlock()
	s.loaded = 0
	return s.writeVCL(s.origins, s.loaded)
}

// vclPath is the path of a configuration. Each has a number.
func (s *Server) vclPath(number int) string {
	return filepath.Join(s.cfg.Dir, fmt.Sprintf("edge%d.vcl", number))
}

func (s *Server) writeVCL(origins []sut.Peer, number int) error {
	if err := os.WriteFile(s.vclPath(number), []byte(s.cfg.render(origins)), 0o600); err != nil {
		return fmt.Errorf("varnish: configuration: %w", err)
	}
	return nil
}

// transientBytes is the memory for what is not an entry: bodies on their way to clients, and marks of URLs that are
// not stored. It is in addition to the budget.
func transientBytes(budget int64) int64 { return max(budget/4, 16<<20) }

// Command returns the command that runs the server in the foreground, not started. It logs to its standard error. The
// caller may add to its SysProcAttr.
func (s *Server) Command() *exec.Cmd {
	c := s.cfg
	args := []string{
		"-F", "-j", "none", "-n", filepath.Join(c.Dir, workName),
		"-f", s.vclPath(s.loaded),
		"-a", s.Address(), "-T", net.JoinHostPort(c.Listen.String(), "0"), "-S", filepath.Join(c.Dir, secretName),
		"-s", fmt.Sprintf("malloc,%d", c.MaxBytes), "-s", fmt.Sprintf("Transient=malloc,%d", transientBytes(c.MaxBytes)),
	}
	for _, parameter := range []string{
		// Without these, what has no lifetime is stored for two minutes, and is served stale for ten seconds.
		"default_ttl=0", "default_grace=0", "default_keep=0",
		"shortlived=0",          // entries with a short life belong to the budget, too
		"http_gzip_support=off", // the origin gets Accept-Encoding as the client sent it
		"thread_pools=2", fmt.Sprintf("thread_pool_min=%d", minThreads/2),
		fmt.Sprintf("thread_pool_max=%d", c.MaxThreads/2), "thread_queue_limit=1000",
		"rush_exponent=1000", // waiters wake at the same time, not by threes
		"vsl_space=1M",       // the log in memory, which nobody reads
		"nuke_limit=1000",
		"timeout_idle=300",
		"max_restarts=4", "max_retries=4",
		"connect_timeout=" + seconds(sut.ConnectTimeout),
		"first_byte_timeout=" + seconds(sut.ResponseTimeout), "between_bytes_timeout=" + seconds(sut.ResponseTimeout),
	} {
		args = append(args, "-p", parameter)
	}
	cmd := exec.Command(c.Install.Path, args...)
	cmd.Dir = c.Dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"} // a compiler is on it
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	return cmd
}

func seconds(d time.Duration) string { return strconv.FormatFloat(d.Seconds(), 'f', -1, 64) }

// Ready probes the server once. It returns nil if the server accepts clients.
func (s *Server) Ready(ctx context.Context) error {
	answer, err := s.command(ctx, "status")
	if err != nil {
		return fmt.Errorf("varnish: %w", err)
	}
	if !strings.Contains(answer, "running") {
		return fmt.Errorf("varnish: %s", strings.TrimSpace(answer))
	}
	return nil
}

// Install is an installed Varnish: varnishd.
type Install struct {
	program.Install
	Stat string // path of varnishstat
}

// installed describes the program. The oldest supported version is that of Debian 12.
func installed() program.Program {
	return program.Program{
		Name: "varnishd", Flag: "-V", Package: "varnish", Oldest: [2]int{7, 0},
		Version: regexp.MustCompile(`^varnishd \(varnish-(\d+\.\d+\.\d+)`),
	}
}

// Find finds an installed server. The second line of its error says how to install Varnish.
func Find() (Install, error) {
	server, err := installed().Find()
	if err != nil {
		return Install{}, err
	}
	stat, err := findStat(server.Path)
	if err != nil {
		return Install{}, fmt.Errorf("varnish: %w\napt-get install %s", err, installed().Package)
	}
	return Install{Install: server, Stat: stat}, nil
}

// findStat finds varnishstat: on PATH, else in the directory bin beside that of the server.
func findStat(server string) (string, error) {
	path, err := exec.LookPath("varnishstat")
	if err == nil {
		return path, nil
	}
	return exec.LookPath(filepath.Join(filepath.Dir(filepath.Dir(server)), "bin", "varnishstat"))
}
