package node

import (
	"context"
	"net"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut/haproxy"
	"github.com/stagebench/stagebench/sut/node/process"
)

// haproxyConnBytes is the memory of a connection of HAProxy: two buffers of 16 KiB, and its state.
const haproxyConnBytes = 34 << 10

// startHAProxy starts the native balancer.
func startHAProxy(ctx context.Context, n process.Node) (c process.Component, err error) {
	install, err := haproxy.Find()
	if err != nil {
		return c, err
	}
	port, err := n.FreePort()
	if err != nil {
		return c, err
	}
	s := haproxy.New(haproxy.Config{
		Balancing: balancing(n.Config), Log: n.Log, Install: install, Dir: filepath.Join(n.Config.Dir, "haproxy"),
		Listen: net.ParseIP(n.Config.Listen), Port: port, Procs: n.Config.Procs,
		MaxConnections: n.ConnsWithin(haproxyConnBytes, maxClientConns),
		Drain:          time.Duration(max(n.Config.DrainSeconds, 1) * float64(time.Second)),
	})
	if c, err = n.StartNative(ctx, s, syscall.SIGKILL); err != nil {
		return c, err
	}
	return withBalancer(n, c, s)
}
