// Package natsserver describes a native nats-server with JetStream as a broker of the queue. It returns the command
// that runs the server, and checks that it is ready.
//
// The package never starts a server. The server of Debian 12, version 2.9, acknowledges jobs when it has written them,
// and writes them to the disk every two minutes; it has no other setting. It is older than several repairs of its
// durability, so each row of a table names its version. Usual order of calls: Find, New, Prepare, Command (the caller
// starts it), Ready until it returns nil. All methods may be called concurrently.
package natsserver

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/program"
)

// Install is an installed nats-server.
type Install = program.Install

// Find finds nats-server. The second line of its error says how to install it.
func Find() (Install, error) {
	return program.Program{
		Name: "nats-server", Flag: "--version", Package: "nats-server", Oldest: [2]int{2, 9},
		Version: regexp.MustCompile(`nats-server: v(\d+\.\d+\.\d+)`),
	}.Find()
}

// Config is the configuration of a Server.
type Config struct {
	Install Install
	Port    int // of clients, never 0
	// These fields have the meaning of those of broker.Config with the same names.
	Name     string
	Dir      string
	Listen   net.IP
	Secret   sut.Secret
	MaxConns int
	MaxBytes int64
	Routes   []string
	// Ping returns nil if the server at an address accepts a client with the secret.
	Ping func(ctx context.Context, address string, secret sut.Secret) error
}

// Server describes a nats-server.
type Server struct {
	program.Server // has Address, StopSignal and Version
	config         Config
}

// New returns a server description. Prepare checks the configuration.
func New(c Config) *Server { return &Server{program.NewServer(c.Install, c.Listen, c.Port), c} }

// Prepare checks the configuration and writes the file of it.
func (s *Server) Prepare(context.Context) error {
	if err := s.CheckLoopback(); err != nil {
		return fmt.Errorf("nats-server: %w", err)
	}
	// Everybody can read the arguments of a process. The directory is private.
	return os.WriteFile(s.file(), []byte(s.text()), 0o600)
}

func (s *Server) file() string { return filepath.Join(s.config.Dir, "nats-server.conf") }

// text returns the configuration file.
func (s *Server) text() string {
	c := s.config
	var out strings.Builder
	line := func(format string, values ...any) { fmt.Fprintf(&out, format+"\n", values...) }
	line("server_name: %q", c.Name)
	line("host: %q", c.Listen.String())
	line("port: %d", c.Port)
	line("authorization { token: %q, timeout: %d }", string(c.Secret), sut.BrokerAuthSeconds)
	line("max_connections: %d", c.MaxConns)
	line("max_payload: %d", sut.BrokerPayload)
	line("max_control_line: %d", sut.BrokerControlLine)
	line("max_pending: %d", sut.BrokerPending)
	store := filepath.Join(c.Dir, "data")
	line("jetstream { store_dir: %q, max_memory_store: 1MB, max_file_store: %d }", store, c.MaxBytes)
	if c.Routes == nil {
		return out.String()
	}
	cluster := net.JoinHostPort(c.Listen.String(), strconv.Itoa(sut.BrokerClusterPort))
	var routes []string
	for _, address := range c.Routes {
		routes = append(routes, fmt.Sprintf("\"nats-route://%s:%s@%s\"", sut.BrokerCluster, string(c.Secret),
			net.JoinHostPort(address, strconv.Itoa(sut.BrokerClusterPort))))
	}
	line("cluster {")
	line("  name: %q, listen: %q, cluster_advertise: %q", sut.BrokerCluster, cluster, cluster)
	line("  authorization { user: %q, password: %q, timeout: %d }", sut.BrokerCluster, string(c.Secret),
		sut.BrokerAuthSeconds)
	line("  routes: [%s]", strings.Join(routes, ", "))
	line("}")
	return out.String()
}

// Command returns the command that runs the server in the foreground. The caller starts it.
func (s *Server) Command() *exec.Cmd {
	cmd := exec.Command(s.config.Install.Path, "-c", s.file())
	cmd.Env = []string{"PATH=/usr/bin:/bin", "LC_ALL=C", "TZ=UTC", "GOMAXPROCS=1"}
	return cmd
}

// Ready returns nil if the server accepts a client with the secret. It does not wait.
func (s *Server) Ready(ctx context.Context) error {
	if err := s.config.Ping(ctx, s.Address(), s.config.Secret); err != nil {
		return fmt.Errorf("nats-server: %w", err)
	}
	return nil
}
