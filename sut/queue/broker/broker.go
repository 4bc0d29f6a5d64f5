// Package broker runs a NATS server with JetStream in this process: the embedded broker of the queue. It stores jobs in
// files of a directory of its own, and acknowledges them after it has written them, which is before they are on the
// disk (see Config.SyncAlways).
//
// It listens on loopback addresses only, and accepts clients and other brokers with the secret of the system only. The
// usual order of calls is Start, Address, Stop. All methods may be called concurrently.
package broker

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"strconv"
	"time"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/stagebench/stagebench/sut"
)

// DefaultSyncInterval is the time between two writes of the stored jobs to the disk.
const DefaultSyncInterval = 2 * time.Minute

// Config is the configuration of a Broker.
type Config struct {
	Name     string // unique in the system
	Dir      string // private directory; a broker that starts again finds its jobs there
	Listen   net.IP // a loopback address
	Port     int    // of clients; 0 = any free port
	Secret   sut.Secret
	MaxConns int
	MaxBytes int64 // of the store
	// SyncAlways makes each job be on the disk before it is acknowledged. Otherwise a power cut can lose the jobs of the
	// last SyncInterval; 0 = DefaultSyncInterval. A killed process loses none.
	SyncAlways   bool
	SyncInterval time.Duration
	// Routes make the broker one of several that store each job: the addresses without ports of this broker and of those
	// that run already. It needs an address of its own. JetStream needs a route, so the first broker has one to itself.
	// nil = it is the only broker.
	Routes []string
	Log    *slog.Logger
}

// Broker is a running broker.
type Broker struct{ server *server.Server }

// Start starts a broker. It returns when the broker accepts clients.
func Start(ctx context.Context, c Config) (*Broker, error) {
	if c.Name == "" || c.Dir == "" || c.Secret == "" || c.Log == nil || !c.Listen.IsLoopback() {
		return nil, errors.New("broker: Name, Dir, Secret, Log and a loopback address are required")
	}
	s, err := server.NewServer(options(c))
	if err != nil {
		return nil, fmt.Errorf("broker: %w", err)
	}
	l := logger{c.Log, make(chan error, 1)}
	s.SetLoggerV2(l, false, false, false)
	b := &Broker{server: s}
	s.Start() // returns at once
	for !s.ReadyForConnections(100 * time.Millisecond) {
		select {
		case err = <-l.fatal:
		case <-ctx.Done():
			err = ctx.Err()
		default:
			continue
		}
		return nil, errors.Join(fmt.Errorf("broker: it does not start: %w", err), b.Stop(context.WithoutCancel(ctx)))
	}
	return b, nil
}

func options(c Config) *server.Options {
	o := &server.Options{
		ServerName: c.Name, Host: c.Listen.String(), Port: c.Port, NoSigs: true, DisableJetStreamBanner: true,
		Authorization: string(c.Secret), AuthTimeout: sut.BrokerAuthSeconds,
		MaxConn: c.MaxConns, MaxPayload: sut.BrokerPayload, MaxControlLine: sut.BrokerControlLine,
		MaxPending: sut.BrokerPending,
		JetStream:  true, StoreDir: c.Dir, JetStreamMaxMemory: 1 << 20, JetStreamMaxStore: c.MaxBytes,
		SyncInterval: c.SyncInterval, SyncAlways: c.SyncAlways,
	}
	if o.SyncInterval == 0 {
		o.SyncInterval = DefaultSyncInterval
	}
	if c.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	if c.Routes == nil {
		return o
	}
	o.Cluster = server.ClusterOpts{
		Name: sut.BrokerCluster, Host: c.Listen.String(), Port: sut.BrokerClusterPort, Advertise: c.Listen.String(),
		Username: sut.BrokerCluster, Password: string(c.Secret), AuthTimeout: sut.BrokerAuthSeconds,
	}
	for _, address := range c.Routes {
		o.Routes = append(o.Routes, &url.URL{
			Scheme: "nats-route", User: url.UserPassword(sut.BrokerCluster, string(c.Secret)),
			Host: net.JoinHostPort(address, strconv.Itoa(sut.BrokerClusterPort)),
		})
	}
	return o
}

// Address returns the host:port of clients.
func (b *Broker) Address() string { return b.server.Addr().String() }

// Version returns the version of the server.
func (b *Broker) Version() string { return server.VERSION }

// Stop stops the broker. It returns when ctx ends at the latest.
func (b *Broker) Stop(ctx context.Context) error {
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		b.server.Shutdown()
		b.server.WaitForShutdown()
	}()
	select {
	case <-stopped:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// logger writes the log of the server. The server expects that a fatal error ends the process.
type logger struct {
	log   *slog.Logger
	fatal chan error
}

func (l logger) Noticef(format string, v ...any) { l.log.Info(fmt.Sprintf(format, v...)) }
func (l logger) Warnf(format string, v ...any)   { l.log.Warn(fmt.Sprintf(format, v...)) }
func (l logger) Errorf(format string, v ...any)  { l.log.Error(fmt.Sprintf(format, v...)) }
func (l logger) Debugf(string, ...any)           {}
func (l logger) Tracef(string, ...any)           {}

func (l logger) Fatalf(format string, v ...any) {
	err := fmt.Errorf(format, v...)
	l.log.Error(err.Error())
	select {
	case l.fatal <- err:
	default: // only the first one is returned
	}
}
