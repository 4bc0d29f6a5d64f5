package driver

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/workloads"
)

// Clients holds a pool of connections and the sessions of the virtual users. It is
// shared by the runs of a cell. Otherwise each step would begin with a burst of new
// connections and logins.
type Clients struct {
	config ClientConfig
	slots  []*slot
	users  sync.Map // virtual user (int) -> *session
}

// slot is one connection of the pool. A slot carries one op at a time.
type slot struct {
	index     int
	transport *http.Transport
	dialed    atomic.Int64 // unix ns at which the current connection was made
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

// session holds the cookies of a virtual user.
type session struct {
	mu      sync.Mutex
	cookies []*http.Cookie
	header  string // the Cookie header with all cookies
	// login counts the logins; 0 = never logged in. A 401 after a login means that the
	// session was lost. The count also ensures that only one of several ops that lost the
	// same session logs the user in again.
	login    int
	renewing int // the login that an op is replacing at the moment
}

// NewClients returns clients for one target. Close them when done.
func NewClients(config ClientConfig) (*Clients, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	c := &Clients{config: config}
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
			conn, err := c.dial(ctx, dialer, network, address, i)
			if err != nil {
				return nil, err
			}
			s.dialed.Store(time.Now().UnixNano())
			return countedConn{conn, &s.writes}, nil
		},
		// A slot carries one op at a time and needs one connection. So the total number
		// of connections never exceeds the limit.
		MaxConnsPerHost:     1,
		MaxIdleConnsPerHost: 1,
		DisableCompression:  true,
		TLSClientConfig:     c.config.TLS,
	}
	return s
}

// dial connects slot i to the target. It tries the addresses in order, starting at the
// slot's own address, and returns the first connection that succeeds.
func (c *Clients) dial(
	ctx context.Context, dialer *net.Dialer, network, address string, i int,
) (conn net.Conn, err error) {
	addresses := c.config.Addresses
	if len(addresses) == 0 {
		addresses = []string{address}
	}
	for n := range addresses {
		conn, err = dialer.DialContext(ctx, network, addresses[(i+n)%len(addresses)])
		if err == nil || ctx.Err() != nil {
			break
		}
	}
	return conn, err
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

// renew closes the slot's connection when it is older than ConnectionLife. The next op
// then makes a new connection.
func (c *Clients) renew(s *slot) {
	if c.config.ConnectionLife > 0 && time.Now().UnixNano()-s.dialed.Load() > int64(c.config.ConnectionLife) {
		s.transport.CloseIdleConnections()
	}
}

// user returns the session of a virtual user, or nil for no user (-1).
func (c *Clients) user(user int) *session {
	if user < 0 {
		return nil
	}
	if found, ok := c.users.Load(user); ok {
		return found.(*session)
	}
	made, _ := c.users.LoadOrStore(user, &session{})
	return made.(*session)
}

// attach adds the user's cookies to a request. It returns the login count of the
// session: 0 for a user who never logged in.
func (s *session) attach(h http.Header) (login int) {
	if s == nil {
		return 0
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.header != "" {
		h["Cookie"] = []string{s.header}
	}
	return s.login
}

// keep stores the cookies of a response. LoggedIn reports that the response belongs to a
// successful login.
func (s *session) keep(h http.Header, loggedIn bool) {
	if s == nil || len(h["Set-Cookie"]) == 0 && !loggedIn {
		return
	}
	response := http.Response{Header: h}
	s.mu.Lock()
	defer s.mu.Unlock()
	if loggedIn {
		s.login++
	}
	for _, fresh := range response.Cookies() {
		s.replace(fresh)
	}
	var pairs []string
	for _, cookie := range s.cookies {
		pairs = append(pairs, cookie.Name+"="+cookie.Value)
	}
	s.header = strings.Join(pairs, "; ")
}

// claimLogin reports whether the caller must log the user in again. It returns false when
// another op has already replaced the given login or is replacing it now.
func (s *session) claimLogin(login int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.login != login || s.renewing == login {
		return false
	}
	s.renewing = login
	return true
}

// releaseLogin ends the claim after a failed login. The next op that finds the session
// lost tries again.
func (s *session) releaseLogin() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewing = 0
}

// replace stores a cookie and removes the old cookie of the same name. An expired cookie
// is only removed. The caller holds the lock.
func (s *session) replace(fresh *http.Cookie) {
	s.cookies = slices.DeleteFunc(s.cookies, func(c *http.Cookie) bool { return c.Name == fresh.Name })
	if fresh.MaxAge >= 0 {
		s.cookies = append(s.cookies, fresh)
	}
}

// LogIn logs every virtual user in before the measurement, if the workload has sessions.
// It logs at most loginLanes users in at the same time.
func (c *Clients) LogIn(ctx context.Context, workload workloads.Workload, timeout time.Duration) error {
	login, ok := workload.(workloads.Login)
	if !ok {
		return nil
	}
	group, ctx := errgroup.WithContext(ctx)
	lanes := min(len(c.slots), loginLanes)
	for lane := range lanes {
		group.Go(func() error {
			for user := lane; user < workload.Users(); user += lanes {
				if err := c.logIn(ctx, c.slots[lane], login.LoginOp(user), user, timeout); err != nil {
					return fmt.Errorf("log in user %d: %w", user, err)
				}
			}
			return nil
		})
	}
	return group.Wait()
}

// loginLanes is the maximum number of concurrent logins. More would overload a small
// host before the measurement begins.
const loginLanes = 8

func (c *Clients) logIn(ctx context.Context, s *slot, op workloads.Op, user int, timeout time.Duration) error {
	session := c.user(user)
	response, err := c.do(ctx, s, op, session, timeout)
	if err != nil {
		return err
	}
	if !op.Check.Accepts(response.StatusCode) {
		return fmt.Errorf("the target answered %s\ncheck that the workload fits this target and its data", response.Status)
	}
	session.keep(response.Header, true)
	return nil
}

// do sends an op outside the measurement and returns the response. The body is already
// read and closed.
func (c *Clients) do(
	ctx context.Context, s *slot, op workloads.Op, session *session, timeout time.Duration,
) (*http.Response, error) {
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	req, err := c.Request(op)
	if err != nil {
		return nil, err
	}
	session.attach(req.Header)
	response, err := s.transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	_, err = s.drain(response.Body, false)
	return response, err
}
