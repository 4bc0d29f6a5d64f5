// Package memcached describes a native memcached server as a cache node on a loopback
// address. It returns the command that runs the server, and reads the server's figures.
//
// The package never starts a server. It connects to one only to check that it is ready,
// to read its figures and to drop keys. The client of the cache tier, in sut/cache, reads
// and writes values. Sizes are in bytes. Usual order of calls: Find, New, Prepare,
// Command (the caller starts it), Ready until it returns nil, Stats. All methods may be
// called concurrently.
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

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/program"
)

// Install is an installed memcached.
type Install = program.Install

// Find finds memcached. The second line of its error says how to install it.
func Find() (Install, error) {
	return program.Program{
		Name: "memcached", Flag: "-V", Package: "memcached", Oldest: [2]int{1, 6},
		Version: regexp.MustCompile(`^memcached (\d+\.\d+\.\d+)`),
	}.Find()
}

// Config configures a memcached server.
type Config struct {
	Install Install
	Listen  net.IP // a loopback address
	Port    int
	// MaxBytes bounds the memory for entries, at least 1 MiB. The server rounds it down to
	// whole MiB. Below about 64 MiB the server may use more: each of its slab classes gets
	// a page of 1 MiB.
	MaxBytes int64
	Procs    int // CPUs of the host = threads of the server; less than 1 counts as 1
	// Secret is demanded from every client; "" = clients need none. It also bounds the memory of others: the server closes
	// a connection that sends 2 KiB without it. A client that has shown it can send an endless line, such as
	// "get a b c", and the server keeps all of it. No option limits that.
	Secret sut.Secret
}

// Server describes a memcached server. When the memory is full, the server evicts the
// least recently used entry of the same slab class, which has a similar size. It supports
// no other policy.
type Server struct {
	program.Server // has Address, StopSignal and Version
	cfg            Config
	passwords      *os.File // set by Prepare; nil = clients need no password
}

// New returns a server description. Prepare checks the configuration.
func New(cfg Config) *Server {
	return &Server{Server: program.NewServer(cfg.Install, cfg.Listen, cfg.Port), cfg: cfg}
}

const (
	mebibyte = 1 << 20
	// maxItem bounds the size of one entry, if MaxBytes allows it. The largest entry of
	// the service, a feed of 100 photos with titles of 200 runes, is below 200,000 bytes.
	maxItem = mebibyte
	// maxConns bounds the client connections. The web tier needs at most 1024: 16 hosts
	// with 64 connections each.
	maxConns = 2048
)

// Prepare returns an error if the configuration is invalid, or if no user may run the
// server.
func (s *Server) Prepare(context.Context) error {
	if err := s.CheckLoopback(); err != nil {
		return fmt.Errorf("memcached: %w", err)
	}
	if s.cfg.MaxBytes < mebibyte {
		return fmt.Errorf("memcached: memory limit of %d bytes: want 1 MiB or more", s.cfg.MaxBytes)
	}
	if s.cfg.Secret != "" && s.passwords == nil {
		var err error
		if s.passwords, err = passwordFile(s.cfg.Secret); err != nil {
			return fmt.Errorf("memcached: password file: %w", err)
		}
	}
	_, err := runAs(os.Geteuid())
	return err
}

// passwordFile returns a file with the password of clients. No path leads to it, so only a process that inherits it can
// read it, also as another user.
func passwordFile(secret sut.Secret) (*os.File, error) {
	f, err := os.CreateTemp("", "stagebench-memcached-")
	if err != nil {
		return nil, err
	}
	_, err = f.WriteString(secret.MemcachedUsers())
	return f, errors.Join(err, os.Remove(f.Name()), f.Chmod(0o644))
}

// Command returns the command that runs the server in the foreground. The caller starts it.
// If this process runs as root, the command has the Credential of an ordinary user. The
// server's option -u would do the same, but its change of user clears the parent death
// signal: the server would survive a killed harness.
func (s *Server) Command() *exec.Cmd {
	limit := s.cfg.MaxBytes / mebibyte
	item := min(maxItem, limit*mebibyte/2) // the server refuses to start with more
	cmd := exec.Command(s.cfg.Install.Path,
		"-l", s.cfg.Listen.String(), "-p", strconv.Itoa(s.cfg.Port), "-U", "0",
		"-m", strconv.FormatInt(limit, 10), "-I", strconv.FormatInt(item, 10),
		"-c", strconv.Itoa(maxConns), "-t", strconv.Itoa(max(s.cfg.Procs, 1)))
	if s.cfg.Secret != "" {
		cmd.Args = append(cmd.Args, "-Y", "/dev/stdin")
		cmd.Stdin = s.passwords
	}
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC"}
	// Prepare has reported this error. Without a credential the server refuses root.
	credential, _ := runAs(os.Geteuid())
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: credential}
	return cmd
}

// runAs returns the credential for the server, which refuses to run as root. nil means the
// user of this process.
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

// Ready returns nil if the server reports its version. It does not wait.
func (s *Server) Ready(ctx context.Context) error {
	_, line, err := s.stats(ctx, "version")
	if err == nil && !strings.HasPrefix(line, "VERSION ") {
		return fmt.Errorf("memcached: version: unexpected reply %q", line)
	}
	return err
}
