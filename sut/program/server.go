package program

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"syscall"
)

// Server is what the descriptions of native servers have in common. They embed it. It does not change, so all methods
// may be called concurrently.
type Server struct {
	install Install
	listen  net.IP
	port    int
}

// NewServer returns the server of an installed program at the address and the TCP port that it listens on.
func NewServer(install Install, listen net.IP, port int) Server { return Server{install, listen, port} }

// CheckLoopback returns an error without the program, without a loopback address or without a port. It is for servers
// that may listen on loopback only.
func (s Server) CheckLoopback() error {
	switch {
	case s.install.Path == "":
		return errors.New("no installation given\nuse the result of Find")
	case !s.listen.IsLoopback():
		return fmt.Errorf("listen address %v: want a loopback address, because the server has no encryption", s.listen)
	case s.port < 1 || s.port > 65535:
		return fmt.Errorf("port %d: want 1 to 65535", s.port)
	}
	return nil
}

// StopSignal is the signal that ends the server. A server with another one has a method of its own.
func (s Server) StopSignal() os.Signal { return syscall.SIGTERM }

// Version returns the version of the installed program, such as "2.6.12".
func (s Server) Version(context.Context) (string, error) { return s.install.Version, nil }

// Address returns the host:port that the server listens on.
func (s Server) Address() string { return net.JoinHostPort(s.listen.String(), strconv.Itoa(s.port)) }
