// Package postgres is the native database node. It describes a private PostgreSQL server
// on a loopback address. The caller starts and stops the server.
//
// Find finds an installed server. Prepare creates or adopts a data directory. Command
// returns the command that runs the server, Ready checks that it accepts connections, and
// StopSignal is the signal that stops it. With Replication the server is a primary or a
// replica: ReplicationStatus returns its position, and ChangeRole promotes it or makes it
// follow another primary. The package never starts or supervises the server, never touches
// the system's own instance, never listens beyond loopback, never lets a superuser log in
// and never trades durability for speed: fsync and synchronous_commit are on.
//
// The order of calls is New, Prepare, Command, Ready until it returns nil. After the last
// process of the server has ended, call Prepare to restart it or Release to clean up. The
// methods of a Server may be called concurrently after Prepare has returned.
//
// PostgreSQL refuses to run as root. If this process is root, Prepare gives the data
// directory to an ordinary user, and the server runs as that user.
//
// Sizes are in bytes, times are time.Duration. A position is a byte offset in the
// write-ahead log (WAL).
package postgres

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/jackc/pgx/v5"
	"golang.org/x/sync/semaphore"

	"github.com/stagebench/stagebench/sut"
)

// User and Database are the names in a new data directory. User is the role of the clients.
// It owns the database and has no other rights. Its password is Config.Secret.
const (
	User     = "stagebench"
	Database = "stagebench"
)

// maxConnections bounds the client connections. sharedBuffers is the size of the server's
// page cache, in bytes.
const (
	maxConnections = 100
	sharedBuffers  = 32 << 20
)

// Config configures a server.
type Config struct {
	Install Install // the result of Find
	Name    string  // shown in the titles of the server's processes
	// Dir is the data directory. Prepare creates it if it does not exist, initializes it
	// if it is empty, and else uses it, for example a copy of a data directory that was
	// shut down cleanly.
	Dir string
	// Listen is the address to bind. It must be a loopback address, because the connections
	// are not encrypted.
	Listen net.IP
	Port   int // TCP port to bind, never 0
	// Secret is the password of User, and of the server's own role. A primary and its
	// replicas have the same one.
	Secret sut.Secret
	// Procs is the number of cores for the server; 0 = 1. It bounds the workers of a
	// parallel query. With one core no query is parallel.
	Procs int
	// Replication makes the server a primary or a replica; nil = no replication.
	Replication *Replication
	Log         *slog.Logger // nil = no log
}

// validate returns an error if the configuration is invalid. Defaults must be set.
func (c Config) validate() error {
	switch {
	case c.Install.Bin == "":
		return errors.New("no PostgreSQL installation given\nuse the result of Find")
	case c.Dir == "":
		return errors.New("no data directory given\nset Dir")
	case !c.Listen.IsLoopback():
		return fmt.Errorf("listen address %v is not a loopback address: connections are not encrypted\n"+
			"use 127.0.0.1 or another 127.x.y.z", c.Listen)
	case c.Secret == "":
		return errors.New("no secret given\nset Secret")
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("port %d: want 1 to 65535", c.Port)
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
	owner *owner // user of the server; nil = the user of this process
	// dir is Config.Dir without symbolic links. The server reports this path, and Ready
	// compares it, so that Ready does not accept another server on the same port.
	dir string

	roleSem  *semaphore.Weighted // weight 1; held during a change of the role
	markerMu sync.Mutex          // held during a change of the marker
	session  session             // for frequent queries

	mu      sync.Mutex
	state   sut.Replication // current role, with Replication
	members []string        // with Replication
	replica replicaState
}

// New returns a server description. Prepare checks the configuration.
func New(cfg Config) *Server {
	cfg.Procs = cmp.Or(cfg.Procs, 1)
	cfg.Log = cmp.Or(cfg.Log, slog.New(slog.DiscardHandler))
	s := &Server{cfg: cfg, roleSem: semaphore.NewWeighted(1), session: session{sem: semaphore.NewWeighted(1)}}
	if s.cfg.Replication != nil {
		s.state, s.members = s.cfg.Replication.State, s.cfg.Replication.Members
	}
	return s
}

// Prepare makes the data directory ready for a start of the server. It initializes an empty
// directory, gives it to the user who runs the server, writes the configuration, and sets
// the passwords, except on a replica, which gets them from its primary. It returns an error
// if another server uses the directory. It waits, until ctx ends, for remaining processes of
// a killed server.
//
// With Replication, Prepare makes the directory that of a primary or of a replica. A
// directory that is a copy of the primary's template, or that has been a replica, is kept
// if it can follow the primary. Otherwise Prepare fetches a new copy from the primary,
// which must be running.
//
// Prepare may be called again after the server has ended or was killed, or after an
// interrupted Prepare, which loses nothing.
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

// prepareDir implements Prepare after user and path are known.
func (s *Server) prepareDir(ctx context.Context) error {
	if err := s.owner.makeReachable(filepath.Dir(s.dir), s.cfg.Log); err != nil {
		return err
	}
	if err := waitUnused(ctx, s.dir); err != nil {
		return err
	}
	initialized, err := isDataDir(s.dir)
	if err != nil {
		return err
	}
	state := s.resetReplica()
	if !initialized && state.Primary == nil {
		if err := s.buildDir(func(tempDir string) error { return s.create(ctx, tempDir) }); err != nil {
			return err
		}
	}
	if err := s.prepareCopy(ctx, initialized, state); err != nil {
		return err
	}
	if err := s.writeSettings(state); err != nil {
		return err
	}
	if err := s.writeOwned(s.dir, "pg_hba.conf", hostRules); err != nil {
		return err
	}
	// The server refuses a directory that other users can read.
	if err := errors.Join(os.Chmod(s.dir, 0o700), s.owner.own(s.dir)); err != nil || state.Primary != nil {
		return err
	}
	// The marker is already written: it has the position of the template's last checkpoint, and this adds another one.
	// So are the settings: they keep the WAL that replicas need.
	return s.setPasswords(ctx)
}

// Command returns the command that runs the server in the foreground. The caller starts it.
// The server logs to standard error. The caller may add to SysProcAttr, which contains the
// Credential of the server's user.
func (s *Server) Command() *exec.Cmd {
	return s.command(context.Background(), "postgres", "-D", s.dir)
}

// command returns the command of a program of the installation, as the server's user.
func (s *Server) command(ctx context.Context, program string, args ...string) *exec.Cmd {
	// Command passes a background context, which never ends, so that the caller alone stops
	// the server.
	cmd := exec.CommandContext(ctx, filepath.Join(s.cfg.Install.Bin, program), args...)
	// The environment is not inherited: PGDATA, PGPORT or a locale would change the server.
	// pg_basebackup, and the server as a replica, log in with PGPASSWORD. Only the same user can read it. Arguments are
	// public, and the server logs a changed primary_conninfo.
	cmd.Env = []string{
		"PATH=" + s.cfg.Install.Bin + ":/usr/bin:/bin", "LC_ALL=C", "TZ=UTC", "PGPASSWORD=" + string(s.cfg.Secret),
	}
	// The server's user may have no access to the caller's working directory.
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{}
	if s.owner != nil {
		cmd.SysProcAttr.Credential = s.owner.credential()
	}
	return cmd
}

// Ready returns nil if the server accepts connections and is the server on this data
// directory. A new replica accepts them after it has received the passwords from its
// primary. Ready does not wait.
func (s *Server) Ready(ctx context.Context) error {
	// The lock file contains the server's state. An earlier connection would only fill the
	// server's log with refusals.
	lock, err := readLock(s.dir)
	if err != nil {
		return fmt.Errorf("postgres: lock file: %w", err)
	}
	if !lock.ready {
		return errors.New("postgres: the server is not running, or is still starting")
	}
	has, err := s.hasPasswords()
	if err != nil {
		return fmt.Errorf("postgres: passwords: %w", err)
	}
	if !has && !s.replays() {
		return errors.New("postgres: the replica has not received the passwords from its primary")
	}
	conn, err := pgx.Connect(ctx, s.url(nodeUser))
	if err != nil {
		return fmt.Errorf("postgres: connect: %w", err)
	}
	defer conn.Close(ctx)
	var dir string
	if err := conn.QueryRow(ctx, "SELECT current_setting('data_directory')").Scan(&dir); err != nil {
		return fmt.Errorf("postgres: query: %w", err)
	}
	if dir != s.dir {
		return fmt.Errorf("postgres: the server on %s has data directory %s, want %s\nchoose another port",
			s.Address(), dir, s.dir)
	}
	if !has {
		if err := s.applyLag(ctx, conn); err != nil {
			return fmt.Errorf("postgres: set the lag: %w", err)
		}
	}
	return nil
}

// applyLag records that a new replica has received the passwords, and puts its lag in force (writeSettings).
func (s *Server) applyLag(ctx context.Context, conn *pgx.Conn) error {
	if err := s.writeOwned(s.dir, secretName, s.secretSum()); err != nil {
		return err
	}
	if err := s.writeSettings(s.current()); err != nil {
		return err
	}
	if err := reloadOver(ctx, conn); err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.replica.lagSince = time.Now().UnixMicro()
	return nil
}

// url returns the URL with which a role connects to the server.
func (s *Server) url(role string) string { return s.urlOf(s.Address(), role) }

// urlOf returns the URL with which a role connects to a server of the same system.
func (s *Server) urlOf(address, role string) string {
	u := url.URL{
		Scheme: "postgres", User: url.UserPassword(role, string(s.cfg.Secret)),
		Host: address, Path: Database, RawQuery: "sslmode=disable",
	}
	return u.String()
}

// StopSignal is the signal for PostgreSQL's fast shutdown: the server rolls transactions
// back, disconnects clients and shuts down cleanly.
func (s *Server) StopSignal() os.Signal { return os.Interrupt }

// Version returns the version of the installed program, such as "15.18".
func (s *Server) Version(context.Context) (string, error) { return s.cfg.Install.Version, nil }

// Address returns the host:port that the server listens on.
func (s *Server) Address() string {
	return net.JoinHostPort(s.cfg.Listen.String(), strconv.Itoa(s.cfg.Port))
}
