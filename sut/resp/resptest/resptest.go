// Package resptest is the conformance kit of cache nodes that speak Redis'
// protocol: the embedded one and Redis itself pass Run, so that the one can take
// the place of the other.
//
// It starts a server of either kind for tests; each one ends with its test. It
// keeps no state.
package resptest

import (
	"context"
	"io"
	"net"
	"os/exec"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stagebench/stagebench/sut/resp"
)

// patience is how long anything may take that is not being measured.
const patience = 20 * time.Second

// Config, Server, Values and Command are those of the embedded node, for tests that may
// know it by this kit only.
type (
	Config  = resp.Config
	Server  = resp.Server
	Values  = resp.Values
	Command = resp.Command
)

// Serve starts an embedded server on a free port of loopback. The listener of the
// configuration is not used.
func Serve(t testing.TB, c resp.Config) *resp.Server {
	t.Helper()
	return ServeProxy(t, c, func(*resp.Server) map[string]resp.Command { return nil })
}

// ServeProxy starts an embedded server like Serve, with further commands, which may use
// what the server holds.
func ServeProxy(t testing.TB, c resp.Config, further func(*resp.Server) map[string]resp.Command) *resp.Server {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c.Listener = listener
	server, err := resp.New(c)
	if err != nil {
		t.Fatal(err)
	}
	if err := server.Extend(further(server)); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if err := server.Shutdown(ctx); err != nil {
			t.Error(err)
		}
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
	return server
}

// Redis starts a redis-server that stores nothing on disk, with further settings
// as "--name", "value", and returns its address. Where there is none the test is
// skipped.
func Redis(t testing.TB, settings ...string) string {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skipf("needs Debian's package redis-server: %v", err)
	}
	for range 5 { // somebody else may take the port before the server does
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := listener.Addr().String()
		_, port, _ := net.SplitHostPort(address)
		_ = listener.Close()
		args := append([]string{"--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir", t.TempDir()}, settings...)
		if begin(t, exec.Command(binary, args...), address) {
			return address
		}
	}
	t.Fatal("redis-server found no port")
	return ""
}

// begin starts a server and reports whether it answers; it is false when the
// server ended by itself.
func begin(t testing.TB, command *exec.Cmd, address string) bool {
	t.Helper()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	ended := make(chan struct{})
	go func() {
		_ = command.Wait()
		close(ended)
	}()
	end := func() {
		_ = command.Process.Kill() // it has nothing to lose
		<-ended
	}
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); {
		if answersAt(address) {
			t.Cleanup(end)
			return true
		}
		select {
		case <-ended:
			return false
		case <-time.After(10 * time.Millisecond):
		}
	}
	end()
	t.Fatal("redis-server does not answer")
	return false
}

// answersAt reports whether a server answers.
func answersAt(address string) bool {
	conn, err := net.DialTimeout("tcp", address, patience)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(patience))
	_, _ = io.WriteString(conn, "PING\r\n")
	answer := make([]byte, len("+PONG\r\n"))
	_, err = io.ReadFull(conn, answer)
	return err == nil && string(answer) == "+PONG\r\n"
}

// Client returns a client of the server at an address, over version 2 of the
// protocol. The caller closes it.
func Client(address string) *redis.Client {
	return redis.NewClient(&redis.Options{Addr: address, Protocol: 2, MaxRetries: -1, DialerRetries: 1, ReadTimeout: patience})
}
