package driver

import (
	"context"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"sync"
	"time"

	"golang.org/x/net/publicsuffix"
	"golang.org/x/sync/errgroup"

	"github.com/stagebench/stagebench/workloads"
)

// session holds the cookies of a virtual user, or of one journey that has its own, by RFC 6265. Users do not share
// them.
type session struct {
	jar *cookiejar.Jar

	mu sync.Mutex
	// login counts the logins; 0 = never logged in. A 401 after a login means that the
	// session was lost. The count also ensures that only one of several ops that lost the
	// same session logs the user in again.
	login    int
	renewing int // the login that an op is replacing at the moment
}

// user returns the session of a virtual user, or nil for no user (-1).
func (c *Clients) user(user int) *session {
	if user < 0 {
		return nil
	}
	if found, ok := c.users.Load(user); ok {
		return found.(*session)
	}
	made, _ := c.users.LoadOrStore(user, newSession())
	return made.(*session)
}

// newSession returns a session without cookies.
func newSession() *session {
	jar, err := cookiejar.New(&cookiejar.Options{PublicSuffixList: publicsuffix.List})
	if err != nil {
		panic(err) // never: New has no error to return
	}
	return &session{jar: jar}
}

// attach adds the user's cookies for the URL of a request. It returns the login count of the
// session: 0 for a user who never logged in.
func (s *session) attach(req *http.Request) (login int) {
	if s == nil {
		return 0
	}
	// First the count: the cookies of a later login with an earlier count cause a needless 401 at most. The other way
	// round, the count would be that of a login whose cookies were not sent, and a 401 would log the user in again.
	s.mu.Lock()
	login = s.login
	s.mu.Unlock()
	for _, cookie := range s.jar.Cookies(addressed(req)) {
		req.AddCookie(cookie)
	}
	return login
}

// keep stores the cookies of a response to a request. LoggedIn reports that the response belongs to a
// successful login.
func (s *session) keep(req *http.Request, h http.Header, loggedIn bool) {
	if s == nil {
		return
	}
	if len(h["Set-Cookie"]) > 0 {
		response := http.Response{Header: h}
		s.jar.SetCookies(addressed(req), response.Cookies())
	}
	if loggedIn {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.login++
	}
}

// addressed returns the URL of a request as the server sees it: with the Host header, which selects a virtual host.
func addressed(req *http.Request) *url.URL {
	if req.Host == "" || req.Host == req.URL.Host {
		return req.URL
	}
	u := *req.URL
	u.Host = req.Host
	return &u
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
	c.use(s, c.sourceOf(user))
	response, err := c.do(ctx, s, op, session, timeout)
	if err != nil {
		return err
	}
	if !op.Check.Accepts(response.StatusCode) {
		return fmt.Errorf("the target answered %s\ncheck that the workload fits this target and its data", response.Status)
	}
	session.keep(response.Request, response.Header, true)
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
	session.attach(req)
	response, err := s.transport.RoundTrip(req.WithContext(ctx))
	if err != nil {
		return nil, err
	}
	_, err = s.drain(response, true)
	return response, err
}
