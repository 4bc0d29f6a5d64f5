package broker_test

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/internal/servertest"
	"github.com/stagebench/stagebench/sut/queue/broker"
	"github.com/stagebench/stagebench/sut/queue/queuetest"
)

// child is the variable that makes the test binary a broker: its directory and its address.
const child = "STAGEBENCH_TEST_BROKER"

func TestMain(m *testing.M) {
	if dir, address, ok := strings.Cut(os.Getenv(child), "@"); ok {
		if err := run(dir, address); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

// run runs a broker until its standard input closes.
func run(dir, address string) error {
	at, err := netip.ParseAddrPort(address)
	if err != nil {
		return err
	}
	b, err := broker.Start(context.Background(), broker.Config{
		Name: "broker-1", Dir: dir, Listen: at.Addr().AsSlice(), Port: int(at.Port()), Secret: queuetest.Secret,
		MaxConns: 100, MaxBytes: 64 << 20, Log: slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	_, _ = io.Copy(io.Discard, os.Stdin)
	return b.Stop(context.Background())
}

// process is a broker in a process of its own.
type process struct {
	dir     string
	address netip.AddrPort
	running *servertest.Process
}

func open(t testing.TB) queuetest.Broker {
	p := &process{dir: t.TempDir(), address: porttest.Free(t)}
	p.Start(t)
	return p
}

func (p *process) Address() string { return p.address.String() }

func (p *process) Start(t testing.TB) {
	t.Helper()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), child+"="+p.dir+"@"+p.address.String())
	input, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = input.Close() })
	p.running = servertest.Launch(t, cmd, nil)
	servertest.Eventually(t, "the broker accepts clients", func() bool {
		return queuetest.Ping(t.Context(), p.Address(), queuetest.Secret) == nil
	})
}

func (p *process) Kill(t testing.TB) {
	t.Helper()
	p.running.Signal(t, syscall.SIGKILL)
	_ = p.running.Wait(t) // "signal: killed"
}

func TestConforms(t *testing.T) {
	t.Parallel()
	queuetest.Run(t, open)
}

// Bad configurations are refused. A port that is taken is an error, and not a broker that nobody reaches.
func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = listener.Close() }()
	_, taken, _ := net.SplitHostPort(listener.Addr().String())
	good := broker.Config{
		Name: "broker-1", Dir: t.TempDir(), Listen: net.IPv4(127, 0, 0, 1), Secret: queuetest.Secret, MaxConns: 10,
		MaxBytes: 1 << 20, Log: slog.New(slog.DiscardHandler),
	}
	for name, spoil := range map[string]func(*broker.Config){
		"name":   func(c *broker.Config) { c.Name = "" },
		"dir":    func(c *broker.Config) { c.Dir = "" },
		"secret": func(c *broker.Config) { c.Secret = "" },
		"log":    func(c *broker.Config) { c.Log = nil },
		"listen": func(c *broker.Config) { c.Listen = net.IPv4zero },
		"port":   func(c *broker.Config) { c.Port, _ = strconv.Atoi(taken) },
	} {
		c := good
		spoil(&c)
		if b, err := broker.Start(t.Context(), c); err == nil {
			t.Errorf("a configuration with a bad %s is accepted", name)
			_ = b.Stop(t.Context())
		}
	}
}
