package cell

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"time"

	"github.com/stagebench/stagebench/targets/attach"
	"github.com/stagebench/stagebench/workloads/driver"
)

// Addresses returns host and port of base URLs.
func Addresses(urls []string) (addresses []string, err error) {
	for _, text := range urls {
		u, err := url.Parse(text)
		if err != nil {
			return nil, err
		}
		addresses = append(addresses, u.Host)
	}
	return addresses, nil
}

// Aim sets the endpoint and the addresses of a system in the configuration of its clients.
func Aim(c *driver.ClientConfig, endpoints, fallbacks []string) (err error) {
	if len(endpoints) == 0 {
		return errors.New("the system has no endpoint")
	}
	if c.Endpoint, err = url.Parse(endpoints[0]); err != nil {
		return err
	}
	if c.Addresses, err = Addresses(endpoints); err != nil {
		return err
	}
	c.Fallbacks, err = Addresses(fallbacks)
	return err
}

// sourceCount is the number of client addresses for a loopback target.
const sourceCount = 64

// Sources returns the source addresses of the clients. For a target on the IPv4 loopback
// network they are 127.(100+x).y.1 and up, so that a server which distinguishes clients by
// address sees many clients. For any other target, or if these addresses cannot be bound,
// the result is nil: the system then chooses.
func Sources(endpoint *url.URL, seed uint64) []netip.Addr {
	if !onLoopback(endpoint) {
		return nil
	}
	var sources []netip.Addr
	for i := range sourceCount {
		address := [4]byte{127, byte(100 + seed%100), byte(seed / 100 % 250), byte(1 + i)}
		sources = append(sources, netip.AddrFrom4(address))
	}
	probe, err := net.Listen("tcp", netip.AddrPortFrom(sources[0], 0).String())
	if err != nil {
		return nil
	}
	_ = probe.Close() // the probe accepted no connection
	return sources
}

// onLoopback reports whether a target is on the IPv4 loopback network. A name such as localhost also has an IPv6
// address, which these sources cannot reach: the target must accept a connection at the IPv4 one.
func onLoopback(endpoint *url.URL) bool {
	elsewhere := func(a netip.Addr) bool { return !a.Unmap().Is4() || !a.Unmap().IsLoopback() }
	if host, err := netip.ParseAddr(endpoint.Hostname()); err == nil {
		return !elsewhere(host)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	addresses, err := net.DefaultResolver.LookupNetIP(ctx, "ip4", endpoint.Hostname())
	if err != nil || slices.ContainsFunc(addresses, elsewhere) {
		return false
	}
	conn, err := (&net.Dialer{}).DialContext(ctx, "tcp4", attach.Address(endpoint))
	if err != nil {
		return false
	}
	_ = conn.Close() // nothing was sent
	return true
}

// Attached is a target that is not one of our systems.
type Attached struct {
	Name     string // the stage of its cells
	Endpoint *url.URL
	Remote   bool                // on another machine
	Clients  driver.ClientConfig // what all its clients have in common, such as headers
	// Start starts it, and returns when it answers; nil = it always runs. Logs is a directory for its log. Stop stops it,
	// and returns an error if it had ended before.
	Start func(ctx context.Context, logs string) (stop func(context.Context) error, err error)
}

// attach starts a target that is not ours, and returns a stepper for it.
func (r *cellRun) attach(ctx context.Context) (err error) {
	if r.Attached.Start != nil {
		if r.down, err = r.Attached.Start(ctx, r.logs); err != nil {
			return err
		}
	}
	config := r.Attached.Clients
	config.Endpoint, config.Sources = r.Attached.Endpoint, Sources(r.Attached.Endpoint, r.Seed)
	config.Connections, config.ConnectionLife, config.DialTimeout = r.Connections, r.ConnectionLife, dialTimeout
	config.Log = r.Log
	clients, err := driver.NewClients(config)
	if err != nil {
		return err
	}
	r.stepper = &Stepper{
		Driver: r.Driver, Clients: clients, Workload: r.Load.Workload, SLO: r.SLO, Timeout: opTimeout, Drain: drainAtStop,
		Progress: r.Progress, ClientCores: float64(Cores()), Remote: r.Attached.Remote, Log: r.files.log,
		timeline: r.files.timeline,
	}
	return nil
}
