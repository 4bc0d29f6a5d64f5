package haproxy_test

import (
	"cmp"
	"testing"

	"github.com/stagebench/stagebench/internal/porttest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/haproxy"
)

// haproxyInstalled finds the server or skips the test.
func haproxyInstalled(t testing.TB) haproxy.Install {
	t.Helper()
	install, err := haproxy.Find()
	if err != nil {
		t.Skipf("needs Debian's package haproxy: %v", err)
	}
	return install
}

// newHAProxy describes a server with a balancing of "lb-1".
func newHAProxy(t testing.TB, install haproxy.Install, cfg sut.Balancing) *haproxy.Server {
	t.Helper()
	cfg.Node = "lb-1"
	return newConfig(t, haproxy.Config{Balancing: cfg, Install: install})
}

// newConfig describes a server on a free port, in a new directory if the configuration names none.
func newConfig(t testing.TB, cfg haproxy.Config) *haproxy.Server {
	t.Helper()
	free := porttest.Free(t)
	cfg.Listen, cfg.Port = free.Addr().AsSlice(), int(free.Port())
	cfg.Dir = cmp.Or(cfg.Dir, t.TempDir())
	return haproxy.New(cfg)
}
