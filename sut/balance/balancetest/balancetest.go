// Package balancetest is the test kit that every load-balancer engine must pass.
//
// The kit starts web hosts in this process, kills and restarts them, and checks what
// clients and hosts see. The test that calls Run starts the engine. The kit does not
// sleep and does not measure time: it waits for events, each with a deadline.
//
// Clients of the kit use a new connection for each request and never repeat a request, so
// every failure is visible. At layer 4, which balances connections, a request is thus a
// connection.
package balancetest

import (
	"context"
	"net/http"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/balance"
)

// Setup is the configuration of a balancer in a test.
type Setup struct {
	// Upstreams are the web hosts with their weights. All of them are up.
	Upstreams []sut.Peer
	// Routes are the routes to the hosts; empty = every host gets every request.
	Routes []sut.Route
	// Layer is "l7" or "l4"; empty = "l7".
	Layer string
	// Policy is "round_robin", "weighted_round_robin", "ip_hash" or "least_conn".
	Policy string
	// Sticky turns on the cookie "lb".
	Sticky bool
	// HealthInterval is the time between two health checks of a host.
	HealthInterval time.Duration
	// EjectAfter is the number of consecutive failures after which a host is ejected;
	// 0 = never.
	EjectAfter int
}

// Balancing returns the setup as the configuration of an engine.
func (s Setup) Balancing() sut.Balancing {
	return sut.Balancing{
		Node: "lb-1", Upstreams: sut.Upstreams{Peers: s.Upstreams, Routes: s.Routes},
		Layer: s.Layer, Policy: s.Policy, Sticky: s.Sticky,
		HealthInterval: s.HealthInterval, HealthTimeout: 5 * time.Second, EjectAfter: s.EjectAfter,
	}
}

// System is a running balancer.
type System struct {
	// URL is the address of its clients, without a trailing slash. Layer 4 has one, too.
	URL string
	// Admin answers /metrics, /healthz, /readyz and /status.
	Admin http.Handler
	Engine
}

// Engine is the interface of a balancer that the kit uses.
type Engine interface {
	balance.Engine
	// SetUpstreams changes the hosts. An error that wraps sut.ErrWiring means that nothing
	// changed. It returns the error of ctx if removed hosts still have requests or
	// connections.
	SetUpstreams(ctx context.Context, next sut.Upstreams) error
}

// Serving returns the System for a balancer that serves at an address.
func Serving(t testing.TB, address string, engine Engine) System {
	t.Helper()
	admin, err := balance.Admin(prometheus.NewRegistry(), engine)
	if err != nil {
		t.Fatal(err)
	}
	return System{URL: "http://" + address, Admin: admin, Engine: engine}
}

// Start starts a balancer that ends with the test.
type Start func(t *testing.T, setup Setup) System

// Run runs the kit against an engine.
func Run(t *testing.T, start Start) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, start Start)
	}{
		{"round robin spreads evenly", testRoundRobin},
		{"least conn avoids a busy host", testLeastConn},
		{"least conn spreads evenly when idle", testLeastConnIdle},
		{"weighted round robin follows the weights", testWeighted},
		{"ip hash keeps an address on its host", testIPHash},
		{"sticky keeps a user on a host", testSticky},
		{"sticky ignores unknown hosts", testStickyUnknown},
		{"sticky moves a user whose host died", testStickyMoves},
		{"sticky is invisible to hosts", testStickyInvisible},
		{"sticky does not apply to shared paths", testStickyShared},
		{"not sticky sets no cookie", testNotSticky},
		{"sticky ends and begins while it serves", testUnsticky},

		{"a killed host fails the requests in flight on it", testKilledHost},
		{"a host killed under load fails a bounded number of requests", testKilledUnderLoad},
		{"a restarted host gets traffic again", testRestartedHost},
		{"an unhealthy host gets no traffic", testUnhealthyHost},
		{"all hosts dead is a quick 503", testAllDead},
		{"a sent request is never sent again", testNeverResent},
		{"an unsent request is sent elsewhere with its body", testRedispatchedBody},
		{"a truncated response is an error for the client", testTruncatedResponse},
		{"the request of a client that leaves is aborted", testClientAbort},

		{"big bodies pass both ways", testBigBodies},
		{"bodies stream both ways", testStreaming},
		{"a slow client does not delay others", testSlowClient},
		{"methods and statuses pass unchanged", testStatuses},
		{"ranges and conditions pass unchanged", testContent},
		{"headers pass intact", testHeaders},
		{"paths and queries pass intact", testPaths},
		{"hosts get the X-Forwarded headers", testForwarded},

		{"routes send requests to their hosts", testRoutes},
		{"a route without a host leaves the others alone", testRouteDown},
		{"sticky holds within a route", testRouteSticky},
		{"sticky keeps a host for each route", testRouteStickyEach},

		{"a host that fails requests is ejected for a while", testEjected},
		{"a host that fails now and then is not ejected", testNotEjected},
		{"a host whose database is down is not ejected", testUnavailable},

		{"request ids pass through all tiers", testRequestIDs},
		{"errors carry a request id", testErrorIDs},

		{"a change of the hosts fails no request", testMembershipUnderLoad},
		{"an added host gets requests after its first passed check", testMembershipHealth},
		{"a removed host finishes its requests", testMembershipDrain},
		{"the sticky users of a removed host move", testMembershipSticky},
		{"the hosts of a route change", testMembershipRoute},
		{"an invalid change of the hosts changes nothing", testMembershipBad},

		{"layer 4 spreads connections by policy", testLayer4Spread},
		{"layer 4 keeps a connection on its host", testLayer4Connection},
		{"layer 4 passes bytes as they are", testLayer4Bytes},
		{"layer 4 passes the end of one direction", testLayer4HalfClose},
		{"layer 4 connects to another host", testLayer4Connect},
		{"layer 4 without a host closes connections", testLayer4AllDead},
		{"layer 4 closes the connections of a host that is down", testLayer4Down},
		{"layer 4 keeps the connections of a removed host", testLayer4Membership},
		{"layer 4 metrics count connections", testLayer4Metrics},

		{"metrics count each request once", testMetrics},
		{"the operator endpoints answer", testAdmin},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, start)
		})
	}
}

// interval is the default health interval of the kit. It is short because many tests wait
// for a check, and long enough for a busy machine.
const interval = 100 * time.Millisecond

// timeout bounds every wait. A test that passes stays far below it.
const timeout = 60 * time.Second
