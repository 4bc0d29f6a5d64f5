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
	"slices"
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
	// Counts so far: connections made, and changes of the source address of a slot.
	dialed, switched atomic.Int64
}

// slot is one connection of the pool. A slot carries one op at a time.
type slot struct {
	index     int
	source    int // index of the source address, if there are any
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
	if n := len(c.config.Sources); n > 0 {
		s.source = i % n
	}
	s.transport = c.transport(s)
	return s
}

// transport returns the transport of a slot: for one connection at a time, from the source address of the slot.
func (c *Clients) transport(s *slot) *http.Transport {
	dialer := &net.Dialer{Timeout: c.config.DialTimeout}
	// With several addresses, the slot decides which one comes first. A user who has a source address always begins at
	// the same one.
	first := s.index
	if len(c.config.Sources) > 0 {
		dialer.LocalAddr = net.TCPAddrFromAddrPort(netip.AddrPortFrom(c.config.Sources[s.source], 0))
	}
	if c.perUser() {
		first = s.source
	}
	return &http.Transport{
		DialContext: func(ctx context.Context, network, address string) (net.Conn, error) {
			conn, fallback, err := c.dial(ctx, dialer, network, address, first)
			if err != nil {
				return nil, err
			}
			c.dialed.Add(1)
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
}

// perUser reports whether each user has one source address.
func (c *Clients) perUser() bool { return c.config.SourcePerUser && len(c.config.Sources) > 0 }

// sourceOf returns the index of the source address of a user, -1 if any will do.
func (c *Clients) sourceOf(user int) int {
	if user < 0 || !c.perUser() {
		return -1
	}
	return user % len(c.config.Sources)
}

// use prepares a slot for an op from a source address; -1 = any. The slot closes a connection from another address.
func (c *Clients) use(s *slot, source int) {
	if source < 0 || source == s.source {
		return
	}
	s.source = source
	c.switched.Add(1)
	// The old transport may still make a connection, for an op that has timed out. So it must not be used again: an op
	// would then come from the old address.
	s.transport.CloseIdleConnections()
	s.transport = c.transport(s)
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

// dial connects to the target. It tries the addresses in order, starting at number i, then
// the fallbacks in the same way, and returns the first connection that succeeds.
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

// pool holds the free slots of a run.
type pool struct {
	free chan struct{} // one value for each free slot

	mu    sync.Mutex
	slots []*slot // the longest unused first
	since []int64 // when these slots became free, sorted
}

// newPool returns a pool of slots that are free since time 0.
func newPool(slots []*slot) *pool {
	p := &pool{free: make(chan struct{}, len(slots)), slots: slices.Clone(slots), since: make([]int64, len(slots))}
	for range slots {
		p.free <- struct{}{}
	}
	return p
}

// take waits for a free slot. It prefers a slot with this source address, and then the one that was not used for the
// longest time. An op can begin as soon as any slot is free. So its time of becoming free is the earliest of all free
// slots, whichever slot the op gets.
func (p *pool) take(source int) freed {
	<-p.free
	p.mu.Lock()
	defer p.mu.Unlock()
	i := max(slices.IndexFunc(p.slots, func(s *slot) bool { return source < 0 || s.source == source }), 0)
	f := freed{slot: p.slots[i], at: p.since[0]}
	p.slots, p.since = slices.Delete(p.slots, i, i+1), slices.Delete(p.since, 0, 1)
	return f
}

// put returns a slot that became free at this time.
func (p *pool) put(f freed) {
	p.mu.Lock()
	p.slots = append(p.slots, f.slot)
	i, _ := slices.BinarySearch(p.since, f.at)
	p.since = slices.Insert(p.since, i, f.at)
	p.mu.Unlock()
	p.free <- struct{}{}
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
