// Package postgres is the native database node: it describes a private
// PostgreSQL server on a loopback address, so that somebody else can start it.
//
// It finds an installed server (Find), makes or adopts a data directory
// (Prepare), and says how to start it (Command), whether it serves (Ready) and
// how to stop it (StopSignal). A server that is one of several copies says how far
// it is (ReplicationStatus), and is promoted or follows another one (Become). The
// package never starts or supervises the server, never
// touches the system's own instance, never listens beyond loopback and never
// trades durability for speed: fsync and synchronous_commit are on.
//
// The order of calls is New, Prepare, Command, Ready until it returns nil;
// after the server's last process has gone, Prepare again to restart it or
// Release to forget it. A Server may be used by several goroutines once
// Prepare has returned.
//
// PostgreSQL refuses to run as root. A harness that is root therefore gives
// the data directory and the server to an ordinary user.
//
// Sizes are bytes, times are time.Duration.
package postgres

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
	"strconv"
	"sync"
	"syscall"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/semaphore"

	"github.com/stagebench/stagebench/sut"
)

// User and Database are the names that a new data directory is made with; the
// user is its only one, a superuser without a password.
const (
	User     = "stagebench"
	Database = "stagebench"
)

// maxConnections bounds client connections, and sharedBuffers is the server's own
// page cache, in bytes.
const (
	maxConnections = 100
	sharedBuffers  = 32 << 20
)

// Config says which server to describe. The zero value of a field means its
// default, where one is given.
type Config struct {
	// Install is the server to run, as Find returned it.
	Install Install
	// Name appears in the titles of the server's processes.
	Name string
	// Dir is the data directory. It is made when it does not exist, filled when
	// it is empty, and used as it is when it holds a data directory, for example
	// the copy of one that was stopped cleanly.
	Dir string
	// Listen is the loopback address to bind: the server trusts whoever reaches
	// it, so that no other address is accepted.
	Listen net.IP
	// Port is the TCP port to bind, never 0.
	Port int
	// Procs is the number of cores that the server may count on; default 1. It
	// bounds the workers of a parallel query: with one core there are none.
	Procs int
	// Replication makes the server one of several copies; nil = there are no others.
	Replication *Replication
	// Log receives what Prepare does; default nowhere.
	Log *slog.Logger
}

// validate says what is wrong with a configuration that has its defaults.
func (c Config) validate() error {
	switch {
	case c.Install.Bin == "":
		return errors.New("no PostgreSQL installation given\nuse the one that Find returns")
	case c.Dir == "":
		return errors.New("no data directory given")
	case !c.Listen.IsLoopback():
		return fmt.Errorf("listen address %v is not a loopback address: the server trusts every connection\n"+
			"use 127.0.0.1 or another 127.x.y.z", c.Listen)
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("port %d: want 1 to 65535, chosen by the caller", c.Port)
	case c.Procs < 1:
		return fmt.Errorf("procs %d: want at least 1", c.Procs)
	case c.Replication != nil:
		return c.Replication.validate()
	}
	return nil
}

// Server describes one PostgreSQL server.
type Server struct {
	cfg   Config
	owner *owner // who runs the server; nil: whoever runs us
	// dir is Config.Dir without symbolic links: the server reports it, and
	// Ready compares it to know that it talks to this server and no other.
	dir string

	becoming *semaphore.Weighted // of one: who has it may change what the server is
	marking  sync.Mutex          // held while the marker is changed
	session  session             // for what is asked again and again

	mu    sync.Mutex
	state sut.Replication // what the server is now, if it has copies
	copy  copyState       // what a replica knows of itself since it was prepared
}

// New describes a server. Prepare checks the configuration.
func New(cfg Config) *Server {
	cfg.Procs = cmp.Or(cfg.Procs, 1)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	s := &Server{cfg: cfg, becoming: semaphore.NewWeighted(1), session: session{turn: semaphore.NewWeighted(1)}}
	if s.cfg.Replication != nil {
		s.state = s.cfg.Replication.State
	}
	return s
}

// Prepare makes the data directory ready to be started: it makes one when there
// is none, gives it to the user who runs the server, and writes the server's
// configuration. It refuses a directory that another server uses. Processes
// that a killed server left behind are waited for until ctx is done.
//
// With a Replication the directory becomes that of a primary or of a replica. A
// replica whose directory is a copy of what the primary began with, or that has
// been one before, goes on from there; any other fetches the whole anew from the
// primary, which must be there for that.
//
// It may be called again after the server has gone, however it went. When it is
// interrupted, the directory is as it was.
func (s *Server) Prepare(ctx context.Context) error {
	if err := s.cfg.validate(); err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	owner, err := serverOwner()
	if err != nil {
		return fmt.Errorf("postgres: %w", err)
	}
	dir, err := makeDir(s.cfg.Dir)
	if err != nil {
		return fmt.Errorf("postgres: data directory: %w", err)
	}
	s.owner, s.dir = owner, dir
	if err := s.prepareDir(ctx); err != nil {
		return fmt.Errorf("postgres: data directory %s: %w", dir, err)
	}
	return nil
}

// prepareDir does what Prepare promises, once user and path are known.
func (s *Server) prepareDir(ctx context.Context) error {
	if err := s.owner.reach(filepath.Dir(s.dir), s.cfg.Log); err != nil {
		return err
	}
	if err := settle(ctx, s.dir); err != nil {
		return err
	}
	made, err := isDataDir(s.dir)
	if err != nil {
		return err
	}
	state := s.begin()
	if !made && state.Primary == nil {
		if err := s.stage(func(staging string) error { return s.create(ctx, staging) }); err != nil {
			return err
		}
	}
	if err := s.prepareCopy(ctx, made, state); err != nil {
		return err
	}
	if err := s.writeSettings(state); err != nil {
		return err
	}
	if err := s.writeOwned(s.dir, "pg_hba.conf", hostRules); err != nil {
		return err
	}
	// The server refuses a directory that others can read.
	return errors.Join(os.Chmod(s.dir, 0o700), s.owner.own(s.dir))
}

// Command returns the command that runs the server in the foreground, not
// started. It logs to its standard error. The caller may add to its
// SysProcAttr, whose Credential is set where the server needs another user.
func (s *Server) Command() *exec.Cmd {
	return s.command(context.Background(), "postgres", "-D", s.dir)
}

// command prepares a program of the installation to be run as the server's user.
func (s *Server) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	// Background has no Done channel, so that this is exec.Command for the server.
	cmd := exec.CommandContext(ctx, filepath.Join(s.cfg.Install.Bin, program), args...)
	// Nothing of the caller's environment: PGDATA, PGPORT or a language would
	// change what runs.
	cmd.Env = []string{"PATH=" + s.cfg.Install.Bin + ":/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	// The server's user may not be allowed in the caller's working directory.
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if s.owner != nil {
		cmd.SysProcAttr.Credential = s.owner.credential()
	}
	return cmd
}

// Ready asks once whether the server serves: nil when the database answers the
// user, and the server that answers is the one on this data directory.
func (s *Server) Ready(ctx context.Context) error {
	// The server notes its state in its lock file. To ask it earlier would only
	// fill its log with refused connections.
	lock, err := readLock(s.dir)
	if err != nil {
		return fmt.Errorf("postgres: state: %w", err)
	}
	if !lock.ready {
		return errors.New("postgres: the server is not up, or still starting")
	}
	conn, err := pgx.Connect(ctx, s.url())
	if err != nil {
		return fmt.Errorf("postgres: connect: %w", err)
	}
	defer conn.Close(ctx)
	var dir string
	if err := conn.QueryRow(ctx, "SELECT current_setting('data_directory')").Scan(&dir); err != nil {
		return fmt.Errorf("postgres: query: %w", err)
	}
	if dir != s.dir {
		return fmt.Errorf("postgres: the server on %s serves %s, not %s\nchoose another port", s.Address(), dir, s.dir)
	}
	return nil
}

// url is how a client of the server connects.
func (s *Server) url() string { return urlOf(s.Address()) }

// urlOf is how a client of the server at an address connects.
func urlOf(address string) string {
	return fmt.Sprintf("postgres://%s@%s/%s?sslmode=disable", User, address, Database)
}

// StopSignal is PostgreSQL's fast shutdown: transactions are rolled back,
// clients disconnected, and the data directory is left clean.
func (s *Server) StopSignal() os.Signal { return os.Interrupt }

// Version is that of the installed program, such as "15.18".
func (s *Server) Version(context.Context) (string, error) { return s.cfg.Install.Version, nil }

// Address is the host:port that the server listens on.
func (s *Server) Address() string {
	return net.JoinHostPort(s.cfg.Listen.String(), strconv.Itoa(s.cfg.Port))
}
