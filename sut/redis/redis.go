// Package redis describes a native Redis server on a loopback address that keeps
// nothing on disk, so that somebody else can start it, and asks one for its figures.
//
// It starts nothing itself and speaks to a server only to see whether it serves and
// what it has counted. The kit in sut/resp/resptest holds it to the protocol of every
// cache node. Sizes are bytes. Usual order of calls: Find, New, then Prepare, the
// started Command, Ready until it returns nil, Stats. All methods may be called
// concurrently.
package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Install is a redis-server that is there.
type Install struct {
	Path    string
	Version string // such as "7.0.15"
}

// programVersion is where redis-server says its version.
var programVersion = regexp.MustCompile(`\bv=(\d+\.\d+\.\d+)`)

// Find finds redis-server, or says how to get it.
func Find() (Install, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	path, err := exec.LookPath("redis-server")
	if err != nil {
		return Install{}, fmt.Errorf("redis-server: %w\ninstall it, on Debian: apt-get install redis-server", err)
	}
	out, err := exec.CommandContext(ctx, path, "--version").Output()
	if err != nil {
		return Install{}, fmt.Errorf("%s --version: %w", path, err)
	}
	found := programVersion.FindSubmatch(out)
	if found == nil {
		return Install{}, fmt.Errorf("%s --version says %q, and no version", path, strings.TrimSpace(string(out)))
	}
	return Install{Path: path, Version: string(found[1])}, nil
}

// Config says which Redis server to describe.
type Config struct {
	Install Install
	Dir     string // its own, which must exist; nothing is stored in it
	Listen  net.IP // loopback
	Port    int
	// MaxBytes is its budget; 0 = no limit. Evict is who goes when it is used up: "lru",
	// "lfu" or "fifo".
	MaxBytes int64
	Evict    string
}

// Server describes a server.
//
// Its LRU and LFU are sampled. It has no FIFO: with one time to live for all keys
// volatile-ttl, which is sampled, too, takes about the oldest.
type Server struct{ cfg Config }

// New describes a server. Prepare checks the configuration.
func New(cfg Config) *Server { return &Server{cfg: cfg} }

// Prepare checks the configuration.
func (s *Server) Prepare(context.Context) error {
	switch c := s.cfg; {
	case c.Install.Path == "":
		return errors.New("redis: no installation given\nuse the one that Find returns")
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
func (s *Server) Command() *exec.Cmd {
	policy := "allkeys-" + s.cfg.Evict
	if s.cfg.Evict == "fifo" {
		policy = "volatile-ttl"
	}
	cmd := exec.Command(s.cfg.Install.Path, // without a configuration file
		"--bind", s.cfg.Listen.String(), "--port", strconv.Itoa(s.cfg.Port), "--dir", s.cfg.Dir,
		"--save", "", "--appendonly", "no", "--daemonize", "no", "--protected-mode", "no",
		"--maxmemory", strconv.FormatInt(s.cfg.MaxBytes, 10), "--maxmemory-policy", policy)
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	return cmd
}

// Ready asks once whether the server serves.
func (s *Server) Ready(ctx context.Context) error {
	answer, err := s.ask(ctx, "PING")
	if err != nil || answer != "+PONG" {
		return fmt.Errorf("redis: PING was answered with %q: %w", answer, errors.Join(err, errNoPong))
	}
	return nil
}

var errNoPong = errors.New("not ready")

// Stats asks the server for its figures, over a connection of its own.
func (s *Server) Stats(ctx context.Context) (sut.CacheFigures, error) {
	var figures sut.CacheFigures
	text, err := s.ask(ctx, "INFO")
	if err == nil {
		figures, err = parseInfo(text)
	}
	if err != nil {
		return sut.CacheFigures{}, fmt.Errorf("redis: INFO: %w", err)
	}
	return figures, nil
}

// ask sends one command and returns the first line of the answer, or the text when it
// is a bulk string.
func (s *Server) ask(ctx context.Context, command string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Address())
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
func parseInfo(text string) (f sut.CacheFigures, err error) {
	told := map[string]string{"db0": "keys=0,"} // there is no such line when it is empty
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		told[name] = value
	}
	told["db0"], _, _ = strings.Cut(strings.TrimPrefix(told["db0"], "keys="), ",")
	for _, wanted := range []struct {
		name   string
		figure *int64
	}{
		{"keyspace_hits", &f.Hits},
		{"keyspace_misses", &f.Misses},
		{"evicted_keys", &f.Evicted},
		{"expired_keys", &f.Expired},
		{"db0", &f.Entries},
		{"used_memory", &f.Bytes},
		{"maxmemory", &f.MaxBytes},
	} {
		value, found := told[wanted.name]
		if !found {
			return sut.CacheFigures{}, fmt.Errorf("it lacks %s", wanted.name)
		}
		if *wanted.figure, err = strconv.ParseInt(value, 10, 64); err != nil {
			return sut.CacheFigures{}, fmt.Errorf("%s: %w", wanted.name, err)
		}
	}
	return f, nil
}

// StopSignal ends the server; it has nothing to save.
func (s *Server) StopSignal() os.Signal { return syscall.SIGTERM }

// Version is that of the installation.
func (s *Server) Version(context.Context) (string, error) { return s.cfg.Install.Version, nil }

// Address is the host:port that the server listens on.
func (s *Server) Address() string {
	return net.JoinHostPort(s.cfg.Listen.String(), strconv.Itoa(s.cfg.Port))
}
