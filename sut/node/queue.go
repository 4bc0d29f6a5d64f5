package node

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"path/filepath"
	"syscall"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/sut/natsserver"
	"github.com/stagebench/stagebench/sut/node/process"
	"github.com/stagebench/stagebench/sut/queue"
	"github.com/stagebench/stagebench/sut/queue/broker"
)

const (
	// brokerConnBytes is the memory that a connection to a broker takes: its buffers, and what it has not read.
	brokerConnBytes = 64 << 10
	maxBrokerConns  = 512
	// storeBytes is the space of a broker besides its jobs: dead letters, and the logs of several brokers that agree.
	storeBytes = 256 << 20
	// ensureBound is the time in which a broker must be able to make the streams. Several brokers elect a leader first.
	ensureBound = 30 * time.Second
	ensurePoll  = 100 * time.Millisecond
	// maxDeadLetters is the number of dead letters that an operator gets.
	maxDeadLetters = 1000
)

// startJetStream starts the embedded broker.
func startJetStream(ctx context.Context, n process.Node) (c process.Component, err error) {
	s := ladder.QueueOf(n.Config.Knobs)
	b, err := broker.Start(ctx, broker.Config{
		Name: n.Config.Node, Dir: filepath.Join(n.Config.Dir, "data"), Listen: net.ParseIP(n.Config.Listen),
		Port: n.Config.Port, Secret: n.Config.Secret, MaxConns: n.ConnsWithin(brokerConnBytes, maxBrokerConns),
		MaxBytes: storeSize(s), SyncAlways: s.Sync == ladder.SyncAlways, SyncInterval: s.SyncInterval,
		Routes: brokerRoutes(n.Config), Log: n.Log,
	})
	if err != nil {
		return c, err
	}
	return brokerNode(ctx, n, process.Component{
		Ready: sut.Ready{Address: b.Address(), Version: b.Version()}, Died: make(chan error, 2), Stop: b.Stop,
	})
}

// startNATSServer starts the native broker.
func startNATSServer(ctx context.Context, n process.Node) (c process.Component, err error) {
	install, err := natsserver.Find()
	if err != nil {
		return c, err
	}
	port, err := n.FreePort()
	if err != nil {
		return c, err
	}
	s := ladder.QueueOf(n.Config.Knobs)
	c, err = n.StartNative(ctx, natsserver.New(natsserver.Config{
		Install: install, Name: n.Config.Node, Dir: n.Config.Dir, Listen: net.ParseIP(n.Config.Listen), Port: port,
		Secret: n.Config.Secret, MaxConns: n.ConnsWithin(brokerConnBytes, maxBrokerConns), MaxBytes: storeSize(s),
		Routes: brokerRoutes(n.Config), Ping: queue.Ping,
	}), syscall.SIGKILL)
	if err != nil {
		return c, err
	}
	return brokerNode(ctx, n, c)
}

// storeSize is the space of a broker.
func storeSize(s ladder.Queue) int64 { return int64(s.CapacityMB)*1_000_000 + storeBytes }

// brokerRoutes returns the addresses of one of several brokers and of those that were started before, without ports. It
// returns nil for the only broker.
func brokerRoutes(c sut.NodeConfig) []string {
	if ladder.QueueOf(c.Knobs).Replicas == 1 {
		return nil
	}
	routes := []string{c.Listen}
	for _, p := range c.Wiring.Uses[sut.Queue] {
		if host, _, err := net.SplitHostPort(p.Address); err == nil {
			routes = append(routes, host)
		}
	}
	return routes
}

// openQueue opens the queue at some brokers.
func openQueue(n process.Node, brokers []sut.Peer, requestID func(context.Context) string) (*queue.Queue, error) {
	s := ladder.QueueOf(n.Config.Knobs)
	config := queue.Config{
		Brokers: brokers, Secret: n.Config.Secret, Name: n.Config.Node, Replicas: s.Replicas, Redeliver: s.Redeliver,
		MaxBytes: int64(s.CapacityMB) * 1_000_000, RequestID: requestID, Log: n.Log,
	}
	if n.Config.Role != sut.Queue { // a broker puts no jobs and does none
		config.Registry = n.Registry
	}
	return queue.Open(config)
}

// brokerNode makes the streams, and adds metrics and the operator endpoints to the component of a broker.
func brokerNode(ctx context.Context, n process.Node, c process.Component) (process.Component, error) {
	s := ladder.QueueOf(n.Config.Knobs)
	own := []sut.Peer{{Node: n.Config.Node, Address: c.Ready.Address}}
	q, err := openQueue(n, own, nil)
	if err != nil {
		return c, errors.Join(err, c.Stop(ctx))
	}
	stop := c.Stop
	c.Stop = func(ctx context.Context) error {
		q.Close()
		return stop(ctx)
	}
	// Each of several brokers is ready when it accepts clients. The last one makes the streams, because JetStream needs
	// most brokers for that.
	if len(n.Config.Wiring.Uses[sut.Queue]) == s.Replicas-1 {
		err := ensure(ctx, q)
		switch {
		case err == nil:
		case s.Replicas == 1:
			return c, errors.Join(err, c.Stop(ctx))
		default: // it restarts while the others are dead
			n.Log.Warn("the brokers cannot agree yet", "error", err.Error())
		}
	}
	monitor, err := queue.NewMonitor(q, s.Unsynced(), n.Registry)
	if err != nil {
		return c, errors.Join(err, c.Stop(ctx))
	}
	operators := n.Operators()
	operators.HandleFunc("GET /dead-letters", func(w http.ResponseWriter, r *http.Request) {
		letters, err := q.DeadLetters(r.Context(), maxDeadLetters)
		if err != nil {
			process.SendError(w, http.StatusServiceUnavailable, err, "try again when the broker serves")
			return
		}
		process.SendJSON(w, http.StatusOK, letters)
	})
	c.Operators = operators
	// Its clients find it at the same address, also after a restart.
	c.Rewire = func(context.Context, sut.Wiring) error { return nil }
	return c.WithBackground(monitor.Run), nil
}

// ensure makes the streams as soon as the broker can.
func ensure(ctx context.Context, q *queue.Queue) error {
	ctx, cancel := context.WithTimeout(ctx, ensureBound)
	defer cancel()
	poll := time.NewTicker(ensurePoll)
	defer poll.Stop()
	for {
		bounded, cancel := context.WithTimeout(ctx, ensureBound/6)
		err := q.Ensure(bounded)
		cancel()
		if err == nil {
			return nil
		}
		select {
		case <-poll.C:
		case <-ctx.Done():
			return fmt.Errorf("the broker did not make the streams within %v: %w", ensureBound, err)
		}
	}
}
