package resp

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"os"
	"os/exec"
	"regexp"
	"slices"
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
	answer, err := r.ask(ctx, "PING")
	if err != nil || answer != "+PONG" {
		return fmt.Errorf("redis: PING was answered with %q: %w", answer, errors.Join(err, errNoPong))
	}
	return nil
}

var errNoPong = errors.New("not ready")

// Stats asks the server for its figures, over a connection of its own. Evict is not
// among them: Redis has policies that this package has not.
func (r *Redis) Stats(ctx context.Context) (Stats, error) {
	text, err := r.ask(ctx, "INFO")
	if err != nil {
		return Stats{}, fmt.Errorf("redis: INFO: %w", err)
	}
	stats, err := parseInfo(text)
	if err != nil {
		return Stats{}, fmt.Errorf("redis: INFO: %w", err)
	}
	return stats, nil
}

// ask sends one command and returns the first line of the answer, or the text when it
// is a bulk string.
func (r *Redis) ask(ctx context.Context, command string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", r.Address())
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }() // all that was wanted is there
	// Also when the caller just leaves: the deadline is then the past.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintf(conn, "%s\r\n", command); err != nil {
		return "", err
	}
	answer := bufio.NewReader(conn)
	line, err := answer.ReadString('\n')
	if err != nil {
		return line, err
	}
	line = strings.TrimSuffix(line, "\r\n")
	if refusal, refused := strings.CutPrefix(line, "-"); refused {
		return "", errors.New(refusal)
	}
	length, bulk := strings.CutPrefix(line, "$")
	if !bulk {
		return line, nil
	}
	n, err := strconv.Atoi(length)
	if err != nil || n < 0 || n > longestInfo {
		return "", fmt.Errorf("it was answered with a text of %q bytes", length)
	}
	text := make([]byte, n)
	_, err = io.ReadFull(answer, text)
	return string(text), err
}

// longestInfo bounds what is believed of an answer's length.
const longestInfo = 1 << 20

// parseInfo reads the figures of an INFO.
func parseInfo(text string) (Stats, error) {
	var stats Stats
	wanted := map[string]*int64{
		"keyspace_hits": &stats.Hits, "keyspace_misses": &stats.Misses, "evicted_keys": &stats.Evicted, "expired_keys": &stats.Expired,
		"used_memory": &stats.Bytes, "maxmemory": &stats.MaxBytes, "connected_clients": &stats.Conns,
		"total_commands_processed": &stats.Commands, "total_connections_received": &stats.Accepted,
	}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimRight(line, "\r\n"), ":")
		if name == "db0" { // keys=1,expires=0,avg_ttl=0; there is none when it is empty
			if _, err := fmt.Sscanf(value, "keys=%d,expires=%d", &stats.Keys, &stats.Expiring); err != nil {
				return Stats{}, fmt.Errorf("%q: %w", line, err)
			}
			continue
		}
		figure := wanted[name]
		if figure == nil {
			continue
		}
		var err error
		if *figure, err = strconv.ParseInt(value, 10, 64); err != nil {
			return Stats{}, fmt.Errorf("%s: %w", name, err)
		}
		delete(wanted, name)
	}
	if len(wanted) > 0 {
		return Stats{}, fmt.Errorf("it lacks %s", strings.Join(slices.Sorted(maps.Keys(wanted)), ", "))
	}
	return stats, nil
}

// StopSignal ends the server; it has nothing to save.
func (r *Redis) StopSignal() os.Signal { return syscall.SIGTERM }

// Version is that of the installation.
func (r *Redis) Version(context.Context) (string, error) { return r.cfg.Install.Version, nil }

// Address is the host:port that the server listens on.
func (r *Redis) Address() string {
	return net.JoinHostPort(r.cfg.Listen.String(), strconv.Itoa(r.cfg.Port))
}
