package resp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// RedisInstall is a redis-server that is there.
type RedisInstall struct {
	Path    string
	Version string // such as "7.0.15"
}

// redisVersion is where redis-server says its version.
var redisVersion = regexp.MustCompile(`\bv=(\d+\.\d+\.\d+)`)

// FindRedis finds redis-server, or says how to get it.
func FindRedis() (RedisInstall, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return RedisInstall{}, fmt.Errorf("redis-server: %w\ninstall it, on Debian: apt-get install redis-server", err)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return RedisInstall{}, fmt.Errorf("%s --version: %w", path, err)
	}
	found := redisVersion.FindSubmatch(out)
	if found == nil {
		return RedisInstall{}, fmt.Errorf("%s --version says %q, and no version", path, strings.TrimSpace(string(out)))
	}
	return RedisInstall{Path: path, Version: string(found[1])}, nil
}

// RedisConfig says which Redis server to describe.
type RedisConfig struct {
	Install RedisInstall
	Dir     string // its own, which must exist; nothing is stored in it
	Listen  net.IP // loopback
	Port    int
	// MaxBytes is its budget; 0 = no limit. Evict is who goes when it is used up.
	MaxBytes int64
	Evict    Evict
}

// Redis describes a Redis server on a loopback address that keeps nothing on disk,
// so that somebody else can start it: Prepare, Command, Ready until it returns nil.
//
// Its LRU and LFU are sampled. It has no FIFO: with one time to live for all keys
// volatile-ttl, which is sampled, too, takes about the oldest.
type Redis struct{ cfg RedisConfig }

// NewRedis describes a server. Prepare checks the configuration.
func NewRedis(cfg RedisConfig) *Redis { return &Redis{cfg: cfg} }

// Prepare checks the configuration.
func (r *Redis) Prepare(context.Context) error {
	switch c := r.cfg; {
	case c.Install.Path == "":
		return errors.New("redis: no installation given\nuse the one that FindRedis returns")
	case !c.Listen.IsLoopback():
		return fmt.Errorf("redis: listens on %v: want an address on loopback, as there are no passwords", c.Listen)
	case c.Port < 1 || c.Port > 65535:
		return fmt.Errorf("redis: port %d: want 1 to 65535, chosen by the caller", c.Port)
	case c.MaxBytes < 0:
		return fmt.Errorf("redis: a budget of %d bytes", c.MaxBytes)
	}
	return nil
}

// Command returns the command that runs the server in the foreground, not started.
func (r *Redis) Command() *exec.Cmd {
	policy := redisName(r.cfg.Evict)
	if r.cfg.Evict == FIFO {
		policy = "volatile-ttl"
	}
	cmd := exec.Command(r.cfg.Install.Path, // without a configuration file
		"--bind", r.cfg.Listen.String(), "--port", strconv.Itoa(r.cfg.Port), "--dir", r.cfg.Dir,
		"--save", "", "--appendonly", "no", "--daemonize", "no", "--protected-mode", "no",
		"--maxmemory", strconv.FormatInt(r.cfg.MaxBytes, 10), "--maxmemory-policy", policy)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	return cmd
}

// Ready asks once whether the server serves.
func (r *Redis) Ready(ctx context.Context) error {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", r.Address())
	if err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	defer conn.Close()
	if until, bounded := ctx.Deadline(); bounded {
		if err := conn.SetDeadline(until); err != nil {
			return fmt.Errorf("redis: %w", err)
		}
	}
	if _, err := fmt.Fprint(conn, "PING\r\n"); err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	answer, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil || answer != "+PONG\r\n" {
		return fmt.Errorf("redis: PING was answered with %q: %w", answer, errors.Join(err, errNoPong))
	}
	return nil
}

var errNoPong = errors.New("not ready")

// StopSignal ends the server; it has nothing to save.
func (r *Redis) StopSignal() os.Signal { return syscall.SIGTERM }

// Version is that of the installation.
func (r *Redis) Version(context.Context) (string, error) { return r.cfg.Install.Version, nil }

// Address is the host:port that the server listens on.
func (r *Redis) Address() string {
	return net.JoinHostPort(r.cfg.Listen.String(), strconv.Itoa(r.cfg.Port))
}
