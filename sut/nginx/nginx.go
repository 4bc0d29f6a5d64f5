// Package nginx describes a native nginx server as an edge: its files, its command, its configuration, how its origins
// change, and how its entries are removed. The caller starts the server.
//
// The package runs the program only to get its version and to check a configuration. The test kit in
// sut/edge/edgetest checks that it behaves like every other edge; Differences lists where it does not. Sizes are in
// bytes.
//
// The order of calls is Find, New, Prepare, then the caller starts Command and passes the lines of its standard error
// to HandleLogLine, then Ready until it returns nil, then SetOrigins, Purge and Figures at any time, and StopSignal.
// All methods except Prepare may be called concurrently.
package nginx

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/program"
)

// Config is the configuration of a Server. The zero value of a field means its default, where one is given.
type Config struct {
	sut.EdgeConfig
	// Install is the program to run, as Find returned it.
	Install Install
	// Dir is the server's private directory. It is made when it does not exist. The entries are files in it.
	Dir string
	// Listen is the address to bind.
	Listen net.IP
	// Port is the TCP port to bind, never 0.
	Port int
	// Procs is the number of worker processes; default 1.
	Procs int
	// MaxConnections limits the connections of each worker, those to the origins included. The limit on open files may
	// allow fewer. Default 10,000.
	MaxConnections int
	// Drain bounds the time for requests in flight after the stop signal and after a change of the origins; default
	// 10 s.
	Drain time.Duration
}

func (c Config) defaults() Config {
	c.EdgeConfig = c.Complete()
	c.Procs = cmp.Or(c.Procs, 1)
	c.MaxConnections = cmp.Or(c.MaxConnections, 10_000)
	c.Drain = cmp.Or(c.Drain, 10*time.Second)
	return c
}

// validate returns the first error in a Config that defaults returned.
func (c Config) validate() error {
	switch {
	case c.Install.Path == "":
		return errors.New("no nginx installation given\npass the Install that Find returns")
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
	case c.TTL%time.Second != 0:
		return fmt.Errorf("ttl %v: want whole seconds, because nginx counts in seconds", c.TTL)
	}
	return c.Validate()
}

// Server describes one nginx server. All its files are in its directory, also the entries.
//
// It differs from other edges in these points, which the kit does not see:
//   - Entries are files. The memory that they take is that of the page cache.
//   - nginx looks every 10 s whether the entries are above the budget.
//   - With a TTL it does not read Cache-Control at all, so stale-while-revalidate and stale-if-error have no effect.
//   - A change of the origins starts new workers. The old ones close idle connections of clients. A client that sends a
//     request at that moment must send it again.
//   - If the main process is killed, its workers go on until Prepare is called for the next start.
type Server struct {
	program.Server // has Address and Version
	cfg            Config

	// changing is held while the configuration changes. It guards origins.
	changing sync.Mutex
	origins  []sut.Peer

	asked   atomic.Int64 // requests of Figures and Ready to the status page, which counts them
	fetches fetches
}

// New returns a description of a server. Prepare returns an error if the configuration is invalid.
func New(cfg Config) *Server {
	cfg = cfg.defaults()
	server := program.NewServer(cfg.Install, cfg.Listen, cfg.Port)
	return &Server{Server: server, cfg: cfg, origins: cfg.Origins}
}

// Names of the files in the directory of a server.
const (
	configName = "nginx.conf"
	pidName    = "nginx.pid"
	socketName = "status.sock"
	cacheName  = "cache"
	tempName   = "temp"
)

// Prepare writes the server's configuration into its directory and has the server check it. It may be called again
// before a restart: it ends what a killed server has left, and removes its entries.
func (s *Server) Prepare(ctx context.Context) error {
	if err := s.cfg.validate(); err != nil {
		return fmt.Errorf("nginx: %w", err)
	}
	dir, err := filepath.Abs(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("nginx: directory: %w", err)
	}
	s.cfg.Dir = dir
	if err := s.clear(ctx); err != nil {
		return fmt.Errorf("nginx: directory: %w", err)
	}
	s.asked.Store(0)
	s.fetches.reset()
	s.changing.Lock()
	defer s.changing.Unlock()
	return s.writeConfig(ctx, s.origins)
}

// clear makes the directories and removes what a server before has left in them.
func (s *Server) clear(ctx context.Context) error {
	if err := os.MkdirAll(s.cfg.Dir, 0o700); err != nil {
		return err
	}
	if err := s.endLeftovers(ctx); err != nil {
		return err
	}
	for _, name := range []string{cacheName, tempName, socketName, pidName} {
		if err := os.RemoveAll(filepath.Join(s.cfg.Dir, name)); err != nil {
			return err
		}
	}
	for _, name := range []string{cacheName, tempName} {
		if err := os.Mkdir(filepath.Join(s.cfg.Dir, name), 0o700); err != nil {
			return err
		}
	}
	return nil
}

// writeConfig writes the configuration with those origins and has the server check it. The configuration in use stays
// if the check fails.
func (s *Server) writeConfig(ctx context.Context, origins []sut.Peer) error {
	var files unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &files); err != nil {
		return fmt.Errorf("nginx: limit on open files: %w", err)
	}
	text := s.cfg.render(origins, os.Geteuid() == 0, connectionsWithin(files.Max, s.cfg.MaxConnections))
	path := filepath.Join(s.cfg.Dir, configName)
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		return fmt.Errorf("nginx: configuration: %w", err)
	}
	if out, err := s.command(ctx, "-t", "-q", "-c", configName+".new").CombinedOutput(); err != nil {
		return fmt.Errorf("nginx: configuration %s.new: %w\n%s", path, err, out)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("nginx: configuration: %w", err)
	}
	return nil
}

// Command returns the command that runs the server in the foreground, not started. It logs to its standard error. The
// caller may add to its SysProcAttr.
func (s *Server) Command() *exec.Cmd { return s.command(context.Background(), "-c", configName) }

// command returns a command that runs the program in its directory. Paths of sockets are relative, because they are
// limited to 107 bytes and the path of the directory may be longer.
func (s *Server) command(ctx context.Context, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, s.cfg.Install.Path, append([]string{"-p", s.cfg.Dir, "-e", "stderr"}, args...)...)
	cmd.Dir = s.cfg.Dir
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LC_ALL=C", "TZ=UTC"}
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	return cmd
}

// Ready probes the server once. It returns nil if the server accepts clients.
func (s *Server) Ready(ctx context.Context) error {
	if _, err := s.status(ctx); err != nil {
		return fmt.Errorf("nginx: %w", err)
	}
	return nil
}

// StopSignal is the signal for nginx's graceful stop. The server stops listening, closes idle connections, waits up to
// Config.Drain for requests in flight, and ends.
func (s *Server) StopSignal() os.Signal { return syscall.SIGQUIT }

// Install is an installed nginx.
type Install = program.Install

// installed describes the program. The oldest supported version is that of Debian 12.
func installed() program.Program {
	return program.Program{
		Name: "nginx", Flag: "-v", Package: "nginx-light", Oldest: [2]int{1, 22},
		Version: regexp.MustCompile(`^nginx version: nginx/(\d+\.\d+\.\d+)`),
	}
}

// Find finds an installed server. The second line of its error says how to install nginx.
func Find() (Install, error) { return installed().Find() }
