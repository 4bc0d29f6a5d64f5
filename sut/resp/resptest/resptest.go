// Package resptest is the conformance kit of cache nodes that speak the Redis protocol.
// The embedded node and Redis both pass Run, so each can replace the other.
//
// It also starts servers of both kinds for tests. A server stops at the end of its test.
// The package has no global state.
package resptest

import (
	"context"
	"errors"
	"io"
	"net"
	"os/exec"
	"testing"
	"time"

	"github.com/redis/go-redis/v9"

	"github.com/stagebench/stagebench/sut/resp"
)

// testTimeout bounds every wait of a test.
const testTimeout = 20 * time.Second

// Config, Server, Values and Command are those of package resp. The import rules allow
// some tests to import only this package.
type (
	Config  = resp.Config
	Server  = resp.Server
	Values  = resp.Values
	Command = resp.Command
)

// Serve starts an embedded server on a free loopback port. It replaces c.Listener.
func Serve(t testing.TB, c resp.Config) *resp.Server {
	t.Helper()
	return ServeProxy(t, c, func(*resp.Server) map[string]resp.Command { return nil })
}

// ServeProxy starts an embedded server like Serve, with additional commands. The commands
// can use the values of the server.
func ServeProxy(
	t testing.TB, c resp.Config, commands func(*resp.Server) map[string]resp.Command,
) *resp.Server {
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
	if err := server.Extend(commands(server)); err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	go func() { served <- server.Serve() }()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
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

// Restarting starts an embedded server that the test can stop, and start again at the same address without its keys.
func Restarting(t testing.TB) (address string, stop, start func()) {
	t.Helper()
	var server *resp.Server
	var served chan error
	address = "127.0.0.1:0"
	start = func() {
		t.Helper()
		listener, err := net.Listen("tcp", address)
		if err != nil {
			t.Fatal(err)
		}
		address = listener.Addr().String()
		started, err := resp.New(resp.Config{Listener: listener})
		if err != nil {
			t.Fatal(err)
		}
		server, served = started, make(chan error, 1)
		go func() { served <- started.Serve() }()
	}
	stop = func() {
		t.Helper()
		if server == nil {
			return
		}
		ctx, cancel := context.WithTimeout(context.Background(), testTimeout)
		defer cancel()
		if err := errors.Join(server.Shutdown(ctx), <-served); err != nil {
			t.Error(err)
		}
		server = nil
	}
	start()
	t.Cleanup(stop)
	return address, stop, start
}

// Redis starts a redis-server that stores nothing on disk, and returns its address. The
// settings are additional arguments, such as "--maxmemory", "1mb". It skips the test when
// redis-server is not installed.
func Redis(t testing.TB, settings ...string) string {
	t.Helper()
	binary, err := exec.LookPath("redis-server")
	if err != nil {
		t.Skipf("needs Debian's package redis-server: %v", err)
	}
	for range 5 { // another process may take the port before redis-server does
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		address := listener.Addr().String()
		_, port, _ := net.SplitHostPort(address)
		_ = listener.Close()
		args := append([]string{
			"--bind", "127.0.0.1", "--port", port, "--save", "", "--appendonly", "no", "--dir", t.TempDir(),
		}, settings...)
		if startServer(t, exec.Command(binary, args...), address) {
			return address
		}
	}
	t.Fatal("redis-server could not start: five ports in a row were taken")
	return ""
}

// startServer starts a server and waits until it answers. It returns false when the
// server exits before that.
func startServer(t testing.TB, command *exec.Cmd, address string) bool {
	t.Helper()
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	exited := make(chan struct{})
	go func() {
		_ = command.Wait()
		close(exited)
	}()
	kill := func() {
		_ = command.Process.Kill() // it stores nothing, so it needs no orderly shutdown
		<-exited
	}
	poll := time.NewTicker(10 * time.Millisecond)
	defer poll.Stop()
	for deadline := time.Now().Add(testTimeout); time.Now().Before(deadline); {
		if answersPing(address) {
			t.Cleanup(kill)
			return true
		}
		select {
		case <-exited:
			return false
		case <-poll.C:
		}
	}
	kill()
	t.Fatal("redis-server does not answer")
	return false
}

// answersPing reports whether a server answers PING.
func answersPing(address string) bool {
	conn, err := net.DialTimeout("tcp", address, testTimeout)
	if err != nil {
		return false
	}
	defer func() { _ = conn.Close() }()
	_ = conn.SetDeadline(time.Now().Add(testTimeout))
	_, _ = io.WriteString(conn, "PING\r\n")
	reply := make([]byte, len("+PONG\r\n"))
	_, err = io.ReadFull(conn, reply)
	return err == nil && string(reply) == "+PONG\r\n"
}

// Client returns a client of a server, with version 2 of the protocol. The caller closes
// it.
func Client(address string) *redis.Client {
	return redis.NewClient(&redis.Options{
		Addr: address, Protocol: 2, MaxRetries: -1, DialerRetries: 1, ReadTimeout: testTimeout,
	})
}
