package natsserver_test

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/internal/servertest"
	"github.com/stagebench/stagebench/sut/natsserver"
	"github.com/stagebench/stagebench/sut/queue/queuetest"
)

// native is nats-server for the kit.
type native struct {
	*natsserver.Server
	running *servertest.Process
}

func (n *native) Start(t testing.TB) {
	t.Helper()
	n.running = servertest.Start(t, n.Server, nil)
}

func (n *native) Kill(t testing.TB) {
	t.Helper()
	n.running.Signal(t, syscall.SIGKILL)
	_ = n.running.Wait(t) // "signal: killed"
}

func config(t testing.TB) natsserver.Config {
	t.Helper()
	install, err := natsserver.Find()
	if err != nil {
		t.Skip(err)
	}
	free := porttest.Free(t)
	return natsserver.Config{
		Install: install, Name: "broker-1", Dir: t.TempDir(), Listen: free.Addr().AsSlice(), Port: int(free.Port()),
		Secret: queuetest.Secret, MaxConns: 100, MaxBytes: 64 << 20, Ping: queuetest.Ping,
	}
}

func TestConforms(t *testing.T) {
	t.Parallel()
	queuetest.Run(t, func(t testing.TB) queuetest.Broker {
		n := &native{Server: natsserver.New(config(t))}
		n.Start(t)
		return n
	})
}

func TestConfigIsChecked(t *testing.T) {
	t.Parallel()
	good := config(t)
	for name, spoil := range map[string]func(*natsserver.Config){
		"no installation": func(c *natsserver.Config) { c.Install.Path = "" },
		"listen address":  func(c *natsserver.Config) { c.Listen = net.IPv4zero },
		"port 0":          func(c *natsserver.Config) { c.Port = 0 },
	} {
		c := good
		spoil(&c)
		if err := natsserver.New(c).Prepare(t.Context()); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Nobody else can read the secret: neither in the file nor in the arguments.
func TestSecretIsPrivate(t *testing.T) {
	t.Parallel()
	c := config(t)
	s := natsserver.New(c)
	if err := s.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	cmd := s.Command()
	if text := fmt.Sprint(cmd.Args, cmd.Env); strings.Contains(text, string(c.Secret)) {
		t.Errorf("the command has the secret: %s", text)
	}
	info, err := os.Stat(cmd.Args[2])
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("the configuration file has mode %v, %v, want 0600", info.Mode(), err)
	}
}

func TestVersion(t *testing.T) {
	t.Parallel()
	version, err := natsserver.New(config(t)).Version(t.Context())
	if err != nil || !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(version) {
		t.Errorf("Version() = %q, %v, want one such as 1.2.3", version, err)
	}
}
