package driver

import (
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// Clients holds a pool of connections and the sessions of the virtual users. It is
// shared by the runs of a cell. Otherwise each step would begin with a burst of new
// connections and logins.
type Clients struct {
	config ClientConfig
	base   string // URL of the target, before the path of an op
	slots  []*slot
	users  sync.Map // virtual user (int) -> *session
}

// slot is one connection of the pool. A slot carries one op at a time.
type slot struct {
	index     int
	transport *http.Transport
	dialed    atomic.Int64 // unix ns at which the current connection was made
	fallback  atomic.Bool  // the current connection is to a fallback
	writes    atomic.Int64 // on all connections of the slot so far
	buffer    []byte       // for reading bodies
	kept      []byte       // the start of the last response body, if the op's check needs it
}

// countedConn counts the writes on a connection. The count shows whether any byte of a
// request was sent.
type countedConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// NewClients returns clients for one target. Close them when done.
func NewClients(config ClientConfig) (*Clients, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	c := &Clients{config: config, base: (&url.URL{
		Scheme: config.Endpoint.Scheme, Host: config.Endpoint.Host,
		Path: config.Endpoint.Path, RawPath: config.Endpoint.RawPath,
	}).String()}
	for i := range config.Connections {
		c.slots = append(c.slots, c.newSlot(i))
	}
	return c, nil
}

func (c *Clients) newSlot(i int) *slot {
	s := &slot{index: i, buffer: make([]byte, 16<<10)}
	dialer := &net.Dialer{Timeout: c.config.DialTimeout}
	if n := len(c.config.Sources); n > 0 {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.config.Sources[i%n], 0))
	}
	s.transport = &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, fallback, err := c.dial(ctx, dialer, network, address, i)
			if err != nil {
				return nil, err
			}
			s.dialed.Store(time.Now().UnixNano())
			s.fallback.Store(fallback)
			return countedConn{conn, &s.writes}, nil
		},
		// A slot carries one op at a time and needs one connection. So the total number
		// of connections never exceeds the limit.
		MaxConnsPerHost:     1,
		MaxIdleConnsPerHost: 1,
		DisableCompression:  true,
		TLSClientConfig:     oneProtocol(c.config.TLS),
	}
	return s
}

// oneProtocol returns a TLS configuration that tells the server that HTTP/1.1 is spoken. A server with another protocol
// then says so.
func oneProtocol(config *tls.Config) *tls.Config {
	if config = config.Clone(); config == nil {
		config = &tls.Config{}
	}
	config.NextProtos = []string{"http/1.1"}
	return config
}

// dial connects slot i to the target. It tries the addresses in order, starting at the
// slot's own address, then the fallbacks in the same way, and returns the first connection
// that succeeds.
func (c *Clients) dial(
	ctx context.Context, dialer *net.Dialer, network, address string, i int,
) (conn net.Conn, fallback bool, err error) {
	addresses := c.config.Addresses
	if len(addresses) == 0 {
		addresses = []string{address}
	}
	for _, group := range [][]string{addresses, c.config.Fallbacks} {
		for n := range group {
			conn, err = dialer.DialContext(ctx, network, group[(i+n)%len(group)])
			if err == nil || ctx.Err() != nil {
				return conn, fallback, err
			}
		}
		fallback = true
	}
	return nil, false, err
}

// Endpoint returns the base URL of the target.
func (c *Clients) Endpoint() *url.URL { return c.config.Endpoint }

// Connections returns the maximum number of connections.
func (c *Clients) Connections() int { return len(c.slots) }

// Close closes all idle connections. No op may be in flight.
func (c *Clients) Close() {
	for _, s := range c.slots {
		s.transport.CloseIdleConnections()
	}
}

// fallbackLife is the maximum age of a connection to a fallback.
const fallbackLife = time.Second

// renew closes the slot's connection when it is too old. The next op then makes a new connection.
func (c *Clients) renew(s *slot) {
	life := c.config.ConnectionLife
	if s.fallback.Load() && (life == 0 || life > fallbackLife) {
		life = fallbackLife
	}
	if life > 0 && time.Now().UnixNano()-s.dialed.Load() > int64(life) {
		s.transport.CloseIdleConnections()
	}
}

// TransportLog is the output of the standard log of a process that sends load: pass it to log.SetOutput. The transport
// of net/http reports only there that a server sent bytes that belong to no response, such as a body that is longer
// than its Content-Length. TransportLog counts these reports. It writes all other lines to the next writer.
//
// It is safe for concurrent use. A nil *TransportLog has counted nothing.
type TransportLog struct {
	next    io.Writer
	surplus atomic.Int64
}

// NewTransportLog returns a log output.
func NewTransportLog(next io.Writer) *TransportLog { return &TransportLog{next: next} }

// Write implements io.Writer.
func (l *TransportLog) Write(line []byte) (int, error) {
	if bytes.Contains(line, []byte("Unsolicited response received on idle HTTP channel")) {
		l.surplus.Add(1)
		return len(line), nil
	}
	return l.next.Write(line)
}

// Surplus returns how often a server has sent bytes that belong to no response.
func (l *TransportLog) Surplus() int64 {
	if l == nil {
		return 0
	}
	return l.surplus.Load()
}
