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

// Clients is a pool of connections and the sessions of the virtual users. It
// outlives a run, so that the steps of a cell do not each begin with a storm of
// new connections and logins.
type Clients struct {
	config ClientConfig
	slots  []*slot
	users  sync.Map // virtual user (int) -> *session
}

// slot is one connection with a source address of its own. One op at a time is
// in it; a run hands slots out and takes them back.
type slot struct {
	index     int
	transport *http.Transport
	born      atomic.Int64 // unix ns of the current connection's birth
	writes    atomic.Int64 // on all connections so far
	buffer    []byte       // for reading bodies away
	kept      []byte       // the body of the last response, if it was to be kept
}

// countedConn counts the writes on a connection, so that a request that never
// left can be told from one that did.
type countedConn struct {
	net.Conn
	writes *atomic.Int64
}

func (c countedConn) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// session is what a virtual user's browser remembers.
type session struct {
	mu      sync.Mutex
	cookies []*http.Cookie
	header  string // of all cookies, ready to send
	// login counts the logins, so that a 401 can be told to be a lost session,
	// and so that one op, not each that lost it, starts a new one.
	login    int
	renewing int // the login that somebody is replacing
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
			s.born.Store(time.Now().UnixNano())
			return countedConn{conn, &s.writes}, nil
		},
		// One op at a time is in a slot, so one connection is all that it needs,
		// and the bound on connections holds whatever the target does.
		MaxConnsPerHost:     1,
		MaxIdleConnsPerHost: 1,
		DisableCompression:  true,
		TLSClientConfig:     c.config.TLS,
	}
	return s
}

// dial makes a connection for the i-th slot: at the slot's own address of the
// target, or at the first after it where one can be made.
func (c *Clients) dial(ctx context.Context, dialer *net.Dialer, network, address string, i int) (conn net.Conn, err error) {
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

// Endpoint is the base URL of the target.
func (c *Clients) Endpoint() *url.URL { return c.config.Endpoint }

// Connections is the bound on connections.
func (c *Clients) Connections() int { return len(c.slots) }

// Close closes all connections.
func (c *Clients) Close() {
	for _, s := range c.slots {
		s.transport.CloseIdleConnections()
	}
}

// renew closes the slot's connection when it has lived long enough, so that the
// next op makes a new one.
func (c *Clients) renew(s *slot) {
	if c.config.ConnectionLife > 0 && time.Now().UnixNano()-s.born.Load() > int64(c.config.ConnectionLife) {
		s.transport.CloseIdleConnections()
	}
}

// user returns the session of a virtual user, nil for nobody (-1).
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

// attach adds the user's cookies to a request and returns the login that they
// stand for: 0 for a user who is not logged in.
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

// keep takes over the cookies of a response; loggedIn says that it answered a
// login that succeeded.
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

// stale reports whether nobody has logged the user in again since that login,
// and makes the caller the one who will.
func (s *session) stale(login int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.login != login || s.renewing == login {
		return false
	}
	s.renewing = login
	return true
}

// notRenewed says that the login which stale asked for came to nothing: the next
// op that finds the session lost tries again.
func (s *session) notRenewed() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.renewing = 0
}

// replace puts a cookie in the place of its namesake; one that has expired only
// goes. The caller holds the lock.
func (s *session) replace(fresh *http.Cookie) {
	s.cookies = slices.DeleteFunc(s.cookies, func(c *http.Cookie) bool { return c.Name == fresh.Name })
	if fresh.MaxAge >= 0 {
		s.cookies = append(s.cookies, fresh)
	}
}

// LogIn starts a session for every virtual user of a workload that has
// sessions, before anything is measured. Users are spread over the connections.
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

// loginLanes bounds the logins at a time, so that a small host is not flooded
// before the measurement has begun.
const loginLanes = 8

func (c *Clients) logIn(ctx context.Context, s *slot, op workloads.Op, user int, timeout time.Duration) error {
	session := c.user(user)
	response, err := c.ask(ctx, s, op, session, timeout)
	if err != nil {
		return err
	}
	if !op.Check.Accepts(response.StatusCode) {
		return fmt.Errorf("the target answered %s\nis the workload made for this target, and for the data that it holds?", response.Status)
	}
	session.keep(response.Header, true)
	return nil
}

// ask carries an op out beside all measurements and returns its answer, whose body has been
// read.
func (c *Clients) ask(ctx context.Context, s *slot, op workloads.Op, session *session, timeout time.Duration) (*http.Response, error) {
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
