package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/app"
	"github.com/stagebench/stagebench/sut/balance"
	"github.com/stagebench/stagebench/sut/blob"
	"github.com/stagebench/stagebench/sut/imaging"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/session"
	"github.com/stagebench/stagebench/sut/store"
)

// httpServer is a part that serves HTTP on one or two listeners.
type httpServer struct {
	servers []*http.Server
	died    chan error
}

// serve adds a listener.
func (h *httpServer) serve(listener net.Listener, handler http.Handler) {
	server := &http.Server{Handler: handler, ReadHeaderTimeout: 10 * time.Second, IdleTimeout: 5 * time.Minute}
	h.servers = append(h.servers, server)
	go func() {
		if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			h.died <- err
		}
	}()
}

// stop lets the requests in flight finish, and closes what is left in the end.
func (h *httpServer) stop(ctx context.Context) error {
	var errs error
	for _, server := range h.servers {
		if err := server.Shutdown(ctx); err != nil {
			errs = errors.Join(errs, err, server.Close())
		}
	}
	return errs
}

func newHTTPServer() *httpServer { return &httpServer{died: make(chan error, 4)} }

// dbConns is how many connections one web host keeps to the database. Small
// hosts gain nothing from more: what waits for a connection here would wait for
// the database's CPU there.
const dbConns = 8

func (b birth) startWeb(ctx context.Context) (part, error) {
	db, err := b.one(sut.DB)
	if err != nil {
		return part{}, err
	}
	blobs, err := b.one(sut.Blob)
	if err != nil {
		return part{}, err
	}
	records, err := store.Open(ctx, store.Config{Address: db, MaxConns: dbConns, Name: b.config.Node})
	if err != nil {
		return part{}, err
	}
	number, err := hostNumber(b.config.Node)
	if err != nil {
		return part{}, err
	}
	if err := records.Warm(ctx); err != nil {
		// It serves what needs no database, and warms up under way.
		b.log.Warn("the database is not there yet", "error", err.Error())
	}
	sessions, err := session.NewMemory(session.MemoryConfig{Registry: b.registry})
	if err != nil {
		return part{}, err
	}
	bytes := blob.NewClient(blob.ClientConfig{Address: blobs})
	service, err := app.New(app.Config{
		Node: b.config.Node, Store: records, Blobs: bytes, Sessions: sessions, Process: imaging.Process,
		IDs: photos.NewIDSource(number, time.Now), Log: b.log, Registry: b.registry, Now: time.Now,
	})
	if err != nil {
		return part{}, err
	}
	listener, err := b.listen(b.config.Port)
	if err != nil {
		return part{}, err
	}
	h := newHTTPServer()
	h.serve(listener, service)
	address := listener.Addr().String()
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: address, Admin: address},
		died:  h.died,
		stop: func(ctx context.Context) error {
			service.Drain()
			err := h.stop(ctx)
			records.Close()
			bytes.Close()
			return err
		},
	}, nil
}

// hostNumber is the part of an id that tells the hosts apart: the number at the
// end of the node's name.
func hostNumber(node string) (uint16, error) {
	number, err := strconv.ParseUint(node[strings.LastIndexByte(node, '-')+1:], 10, 16)
	if err != nil {
		return 0, fmt.Errorf("web node %q has no number at the end of its name, which its ids are made from", node)
	}
	return uint16(number), nil
}

func (b birth) startBlob() (part, error) {
	dir, err := blob.OpenDir(b.config.Dir)
	if err != nil {
		return part{}, err
	}
	listener, admin, err := b.listenBoth()
	if err != nil {
		return part{}, err
	}
	h := newHTTPServer()
	h.serve(listener, blob.NewHandler(blob.HandlerConfig{Dir: dir, Log: b.log, Registry: b.registry}))
	h.serve(admin, b.admin())
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: listener.Addr().String(), Admin: admin.Addr().String()},
		died:  h.died, stop: h.stop,
	}, nil
}

func (b birth) startBalance(context.Context) (part, error) {
	balancer, err := balance.New(b.balanceConfig())
	if err != nil {
		return part{}, err
	}
	listener, admin, err := b.listenBoth()
	if err != nil {
		return part{}, err
	}
	checking, cancel := context.WithCancel(context.Background())
	h := newHTTPServer()
	checked := make(chan struct{})
	go func() {
		defer close(checked)
		if err := balancer.Run(checking); err != nil && checking.Err() == nil {
			h.died <- fmt.Errorf("health checks: %w", err)
		}
	}()
	h.serve(listener, balancer.Handler())
	h.serve(admin, balancer.Admin())
	return part{
		ready: sut.Ready{Node: b.config.Node, Address: listener.Addr().String(), Admin: admin.Addr().String()},
		died:  h.died,
		stop: func(ctx context.Context) error {
			err := h.stop(ctx)
			cancel()
			<-checked
			balancer.Close()
			return err
		},
	}, nil
}

// balanceConfig is the same for both engines of the role.
func (b birth) balanceConfig() balance.Config {
	return balance.Config{
		Node: b.config.Node, Upstreams: b.config.Uses[sut.Web],
		Policy: b.config.Knobs["lb.policy"], Sticky: b.config.Knobs.Bool("lb.sticky"),
		HealthInterval: time.Duration(b.config.Knobs.Float("lb.health_interval") * float64(time.Second)),
		Registry:       b.registry, Log: b.log,
	}
}
