package node

import (
	"context"
	"net"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut/nginx"
	"github.com/stagebench/stagebench/sut/node/process"
)

// nginxConnBytes is the memory of a connection of nginx: the buffers of its header and of its response.
const nginxConnBytes = 48 << 10

// startNginx starts a native edge.
func startNginx(ctx context.Context, n process.Node) (c process.Component, err error) {
	install, err := nginx.Find()
	if err != nil {
		return c, err
	}
	port, err := n.FreePort()
	if err != nil {
		return c, err
	}
	s := nginx.New(nginx.Config{
		EdgeConfig: edgeConfig(n.Config), Install: install, Dir: filepath.Join(n.Config.Dir, "nginx"),
		Listen: net.ParseIP(n.Config.Listen), Port: port, Procs: n.Config.Procs,
		MaxConnections: n.ConnsWithin(nginxConnBytes, maxClientConns),
		Drain:          time.Duration(max(n.Config.DrainSeconds, 1) * float64(time.Second)),
	})
	// The workers are children of the process that this node starts. They end when that one is asked to.
	if c, err = n.StartNative(ctx, s, syscall.SIGTERM); err != nil {
		return c, err
	}
	return withEdge(n, c, s), nil
}
