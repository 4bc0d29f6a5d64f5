// Package redis describes a native Redis server as a cache node: it listens on a loopback
// address and stores nothing on disk. The package returns the command that runs the
// server, and reads the server's figures.
//
// The package never starts a server. It connects to one only to check that it is ready,
// to read its figures and to drop keys. The conformance kit in sut/resp/resptest checks
// the server's protocol. Sizes are in bytes. Usual order of calls: Find, New, Prepare,
// Command (the caller starts it), Ready until it returns nil, Stats. All methods may be
// called concurrently.
package redis

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/program"
)

// Install is an installed redis-server.
type Install = program.Install

// Find finds redis-server. The second line of its error says how to install it.
func Find() (Install, error) {
	return program.Program{
		Name: "redis-server", Flag: "--version", Package: "redis-server", Oldest: [2]int{6, 0},
		Version: regexp.MustCompile(`\bv=(\d+\.\d+\.\d+)`),
	}.Find()
}

// NoEviction is the eviction policy of a server that refuses writes when its memory is full.
const NoEviction = "noeviction"

// Config configures a Redis server.
type Config struct {
	Install Install
	Dir     string // working directory, must exist; the server stores nothing in it
	Listen  net.IP // a loopback address
	Port    int
	// MaxBytes bounds the server's memory; 0 = no limit. Evict is the eviction policy when
	// the limit is reached: "lru", "lfu", "fifo", or NoEviction.
	MaxBytes int64
	Evict    string
	// Secret is the password of every client; "" = clients need none.
	Secret sut.Secret
}

// Server describes a Redis server.
//
// Redis approximates LRU and LFU by samples. Redis has no FIFO policy. Server uses
// volatile-ttl instead, which evicts the key that expires next among a sample. With the
// same time to live for all keys, that is approximately the oldest key.
type Server struct {
	program.Server // has Address, StopSignal and Version
	cfg            Config
}

// New returns a server description. Prepare checks the configuration.
func New(cfg Config) *Server {
	return &Server{program.NewServer(cfg.Install, cfg.Listen, cfg.Port), cfg}
}

// The limits of clients. They are for clients that have shown the secret: from others, Redis takes 10 arguments of
// 16 KiB. The web tier needs at most 1024 connections: 16 hosts with 64 each.
const (
	maxClients      = 2048
	maxCommand      = 64 << 20  // bytes of an unfinished command
	maxClientMemory = 128 << 20 // bytes of all connections; above it, Redis closes the largest
)

// Prepare returns an error if the configuration is invalid.
func (s *Server) Prepare(context.Context) error {
	if err := s.CheckLoopback(); err != nil {
		return fmt.Errorf("redis: %w", err)
	}
	if s.cfg.MaxBytes < 0 {
		return fmt.Errorf("redis: memory limit of %d bytes: want 0 or more", s.cfg.MaxBytes)
	}
	return nil
}

// Command returns the command that runs the server in the foreground. The caller starts it.
func (s *Server) Command() *exec.Cmd {
	policy := "allkeys-" + s.cfg.Evict
	switch s.cfg.Evict {
	case "fifo":
		policy = "volatile-ttl"
	case NoEviction:
		policy = NoEviction
	}
	cmd := exec.Command(s.cfg.Install.Path, // without a configuration file
		"--bind", s.cfg.Listen.String(), "--port", strconv.Itoa(s.cfg.Port), "--dir", s.cfg.Dir,
		"--save", "", "--appendonly", "no", "--daemonize", "no", "--protected-mode", "no",
		"--maxclients", strconv.Itoa(maxClients), "--client-query-buffer-limit", strconv.Itoa(maxCommand),
		"--maxmemory", strconv.FormatInt(s.cfg.MaxBytes, 10), "--maxmemory-policy", policy)
	if major, _, _ := strings.Cut(s.cfg.Install.Version, "."); major != "6" { // 6 has no such setting
		cmd.Args = append(cmd.Args, "--maxmemory-clients", strconv.Itoa(maxClientMemory))
	}
	cmd.Args = append(cmd.Args, "-")
	// Everybody can read the arguments of a process, but nobody its standard input.
	cmd.Stdin = strings.NewReader("requirepass \"" + string(s.cfg.Secret) + "\"\n")
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	return cmd
}

// Ready returns nil if the server answers a PING. It does not wait.
func (s *Server) Ready(ctx context.Context) error {
	reply, err := s.call(ctx, "PING")
	if err != nil {
		return fmt.Errorf("redis: PING: %w", err)
	}
	if reply != "+PONG" {
		return fmt.Errorf("redis: PING: reply %q, want +PONG", reply)
	}
	return nil
}

// Stats reads the server's figures over a new connection.
func (s *Server) Stats(ctx context.Context) (sut.CacheFigures, error) {
	var figures sut.CacheFigures
	text, err := s.call(ctx, "INFO")
	if err == nil {
		figures, err = parseInfo(text)
	}
	if err != nil {
		return sut.CacheFigures{}, fmt.Errorf("redis: INFO: %w", err)
	}
	return figures, nil
}

// call sends one command over a new connection. It returns the text of a bulk string
// reply, else the first line of the reply.
func (s *Server) call(ctx context.Context, command string) (string, error) {
	var d net.Dialer
	conn, err := d.DialContext(ctx, "tcp", s.Address())
	if err != nil {
		return "", err
	}
	defer func() { _ = conn.Close() }() // the reply is complete without it
	// A past deadline interrupts reads and writes when ctx ends.
	defer context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	in := bufio.NewReader(conn)
	if s.cfg.Secret != "" {
		if _, err := send(conn, in, "AUTH "+string(s.cfg.Secret)); err != nil {
			return "", err
		}
	}
	return send(conn, in, command)
}

// send sends one command and reads the reply.
func send(conn io.Writer, reply *bufio.Reader, command string) (string, error) {
	if _, err := fmt.Fprintf(conn, "%s\r\n", command); err != nil {
		return "", err
	}
	line, err := reply.ReadString('\n')
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
	if err != nil || n < 0 || n > maxInfo {
		return "", fmt.Errorf("reply has a length of %q bytes, want 0 to %d", length, maxInfo)
	}
	text := make([]byte, n)
	_, err = io.ReadFull(reply, text)
	return string(text), err
}

// maxInfo bounds the length of a reply.
const maxInfo = 1 << 20

// parseInfo parses the reply to INFO.
func parseInfo(text string) (f sut.CacheFigures, err error) {
	const refused = "errorstat_OOM"
	// An empty database has no line db0. A server that has refused nothing has no line for it.
	fields := map[string]string{"db0": "keys=0,", refused: "count=0"}
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		fields[name] = value
	}
	fields["db0"], _, _ = strings.Cut(strings.TrimPrefix(fields["db0"], "keys="), ",")
	fields[refused] = strings.TrimPrefix(fields[refused], "count=")
	for _, wanted := range []struct {
		name   string
		figure *int64
	}{
		{"keyspace_hits", &f.Hits},
		{"keyspace_misses", &f.Misses},
		{"evicted_keys", &f.Evicted},
		{"expired_keys", &f.Expired},
		{refused, &f.Refused},
		{"db0", &f.Entries},
		{"used_memory", &f.Bytes},
		{"maxmemory", &f.MaxBytes},
	} {
		value, found := fields[wanted.name]
		if !found {
			return sut.CacheFigures{}, fmt.Errorf("no field %s in the reply", wanted.name)
		}
		if *wanted.figure, err = strconv.ParseInt(value, 10, 64); err != nil {
			return sut.CacheFigures{}, fmt.Errorf("%s: %w", wanted.name, err)
		}
	}
	return f, nil
}
