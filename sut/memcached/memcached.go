// Package memcached describes a native memcached server on a loopback address, so
// that somebody else can start it, and asks one for its figures.
//
// It starts nothing itself and speaks to a server only to see whether it serves and
// what it has counted: the client of the cache tier has the values. Sizes are bytes.
// Usual order of calls: Find, New, then Prepare, the started Command, Ready until it
// returns nil, Stats. All methods may be called concurrently.
package memcached

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/user"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// Install is a memcached that is there.
type Install struct {
	Path    string
	Version string // such as "1.6.18"
}

// programVersion is where memcached says its version.
var programVersion = regexp.MustCompile(`^memcached (\d+\.\d+\.\d+)`)

// Find finds memcached, or says how to get it.
func Find() (Install, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	path, err := exec.LookPath("memcached")
	if err != nil {
		return Install{}, fmt.Errorf("memcached: %w\ninstall it, on Debian: apt-get install memcached", err)
	}
	out, err := exec.CommandContext(ctx, path, "-V").Output()
	if err != nil {
		return Install{}, fmt.Errorf("%s -V: %w", path, err)
	}
	found := programVersion.FindSubmatch(out)
	if found == nil {
		return Install{}, fmt.Errorf("%s -V says %q, and no version", path, strings.TrimSpace(string(out)))
	}
	return Install{Path: path, Version: string(found[1])}, nil
}

// Config says which server to describe.
type Config struct {
	Install Install
	Listen  net.IP // loopback
	Port    int
	// MaxBytes is the budget for entries, of which the server takes whole MiB; at least
	// one. Below about 64 MiB it may take more: each of its classes of sizes gets one
	// page of a MiB, however small the budget is.
	MaxBytes int64
	Procs    int // CPUs that the host has; less than 1 counts as 1
}

// Server describes a memcached server. When the budget is used up, the entry of about
// the same size goes that nobody has asked for longest. It has no other policy.
type Server struct{ cfg Config }

// New describes a server. Prepare checks the configuration.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

const (
	mebibyte = 1 << 20
	// maxItem is the largest entry where the budget allows it. The largest of ours, a
	// feed of 100 photos with titles of 200 runes, has less than 200,000 bytes.
	maxItem = mebibyte
	// maxConns is how many clients there may be: more than all web hosts have
	// connections together, 16 times 64.
	maxConns = 2048
)

// Prepare checks the configuration and that there is somebody to run the server.
func (s *Server) Prepare(context.Context) error {
	switch c := s.cfg; {
	case c.Install.Path == "":
		return errors.New("memcached: no installation given\nuse the one that Find returns")
	case !c.Listen.IsLoopback():
		return fmt.Errorf("memcached: listens on %v: want an address on loopback, as there are no passwords", c.Listen)
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("memcached: port %d: want 1 to 65535, chosen by the caller", c.Port)
	case c.MaxBytes < mebibyte:
		return fmt.Errorf("memcached: a budget of %d bytes: want 1 MiB or more", c.MaxBytes)
	}
	_, err := runAs(os.Geteuid())
	return err
}

// Command returns the command that runs the server in the foreground, not started.
// When we are root its Credential is that of an ordinary user. The server's own way
// of becoming one (-u) would make the kernel forget that the server has to die with
// the thread that started it.
func (s *Server) Command() *exec.Cmd {
	budget := s.cfg.MaxBytes / mebibyte
	item := min(maxItem, budget*mebibyte/2) // more is refused
	cmd := exec.Command(s.cfg.Install.Path,
		"-l", s.cfg.Listen.String(), "-p", strconv.Itoa(s.cfg.Port), "-U", "0",
		"-m", strconv.FormatInt(budget, 10), "-I", strconv.FormatInt(item, 10),
		"-c", strconv.Itoa(maxConns), "-t", strconv.Itoa(max(s.cfg.Procs, 1)))
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	// Prepare has reported the error, and without a user the server itself refuses.
	credential, _ := runAs(os.Geteuid())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	return cmd
}

// runAs chooses who runs the server, which refuses root: nil is ourselves.
func runAs(uid int) (*syscall.Credential, error) {
	if uid != 0 {
		return nil, nil
	}
	for _, name := range []string{"memcache", "nobody"} {
		account, err := user.Lookup(name)
		if err != nil {
			continue
		}
		uid, errUID := strconv.ParseUint(account.Uid, 10, 32)
		gid, errGID := strconv.ParseUint(account.Gid, 10, 32)
		if err := errors.Join(errUID, errGID); err != nil {
			return nil, fmt.Errorf("memcached: user %s: %w", name, err)
		}
		return &syscall.Credential{Uid: uint32(uid), Gid: uint32(gid), Groups: []uint32{}}, nil
	}
	return nil, errors.New("memcached: the server refuses to run as root, and there is no user memcache or nobody\n" +
		"run as an ordinary user, or add one: useradd --system memcache")
}

// Ready asks once whether the server serves.
func (s *Server) Ready(ctx context.Context) error {
	_, line, err := s.ask(ctx, "version")
	if err == nil && !strings.HasPrefix(line, "VERSION ") {
		return fmt.Errorf("memcached: version was answered with %q", line)
	}
	return err
}

// StopSignal ends the server; it has nothing to save.
func (s *Server) StopSignal() os.Signal { return syscall.SIGTERM }

// Version is that of the installation.
func (s *Server) Version(context.Context) (string, error) { return s.cfg.Install.Version, nil }

// Address is the host:port that the server listens on.
func (s *Server) Address() string {
	return net.JoinHostPort(s.cfg.Listen.String(), strconv.Itoa(s.cfg.Port))
}
