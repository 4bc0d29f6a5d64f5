package node

import (
	"context"
	"net"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/varnish"
)

// varnishThreadBytes is the memory of a thread of Varnish, with its workspaces and its client's request. maxThreads is
// the maximum number of threads, if the memory allows so many.
const (
	varnishThreadBytes = 192 << 10
	maxThreads         = 1000
)

// startVarnish starts a native edge.
func startVarnish(ctx context.Context, n process.Node) (c process.Component, err error) {
	install, err := varnish.Find()
	if err != nil {
		return c, err
	}
	port, err := n.FreePort()
	if err != nil {
		return c, err
	}
	s := varnish.New(varnish.Config{
		EdgeConfig: edgeConfig(n.Config), Install: install, Dir: filepath.Join(n.Config.Dir, "varnish"),
		Listen: net.ParseIP(n.Config.Listen), Port: port, MaxThreads: n.ConnsWithin(varnishThreadBytes, maxThreads),
		Drain: time.Duration(max(n.Config.DrainSeconds, 1) * float64(time.Second)),
	})
	// The process that serves is a child of the one that this node starts. It ends when that one is asked to.
	if c, err = n.StartNative(ctx, s, syscall.SIGTERM); err != nil {
		return c, err
	}
	return withEdge(n, c, s), nil
}
