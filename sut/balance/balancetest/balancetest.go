// Package balancetest is the kit that every load-balancer engine must pass.
//
// It starts web hosts of its own in this process, has the engine balance them,
// kills and restarts hosts, and looks at what clients and hosts see. It never
// starts an engine (the test that calls Run does), never sleeps and never
// measures time: it waits for events, each with a deadline.
//
// Clients of the kit use a new connection for each request and repeat nothing,
// so that every failure shows. So at layer 4, where connections are balanced,
// a request is a connection.
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

// Setup is what an engine is asked to balance. A field that is left at zero asks
// for nothing.
type Setup struct {
	// Upstreams are the web hosts, all of them up, with their weights.
	Upstreams []sut.Peer
	// Routes say which hosts get which requests.
	Routes []sut.Route
	// Layer is "l7", "l4", or empty, which is "l7".
	Layer string
	// Policy is "round_robin", "weighted_round_robin", "ip_hash" or "least_conn".
	Policy string
	// Sticky asks for the cookie "lb".
	Sticky bool
	// HealthInterval is the time between two health checks of a host.
	HealthInterval time.Duration
	// EjectAfter is the number of failures in a row that take a host out; 0 =
	// only health checks do.
	EjectAfter int
}

// Balancing is what a setup asks for, in the words of the engines.
func (s Setup) Balancing() sut.Balancing {
	return sut.Balancing{
		Node: "lb-1", Upstreams: sut.Upstreams{Peers: s.Upstreams, Routes: s.Routes}, Layer: s.Layer, Policy: s.Policy, Sticky: s.Sticky,
		HealthInterval: s.HealthInterval, HealthTimeout: 5 * time.Second, EjectAfter: s.EjectAfter,
	}
}

// System is a balancer that serves.
type System struct {
	// URL is its public side, without a slash at the end, at layer 4 too.
	URL string
	// Admin answers /metrics, /healthz, /readyz and /status.
	Admin http.Handler
	Engine
}

// Engine is a balancer as the kit asks and tells it.
type Engine interface {
	balance.Engine
	// SetUpstreams changes the hosts. It returns a sut.ErrWiring for what changes
	// nothing, and ctx's error when hosts that left have not finished.
	SetUpstreams(ctx context.Context, next sut.Upstreams) error
}

// Serving is a balancer that serves at an address.
func Serving(t testing.TB, address string, engine Engine) System {
	t.Helper()
	admin, err := balance.Admin(prometheus.NewRegistry(), engine)
	if err != nil {
		t.Fatal(err)
	}
	return System{URL: "http://" + address, Admin: admin, Engine: engine}
}

// Start brings a balancer up and has it end with the test.
type Start func(t *testing.T, setup Setup) System

// Run holds an engine to the behaviour that all have in common.
func Run(t *testing.T, start Start) {
	for _, test := range []struct {
		name string
		run  func(t *testing.T, start Start)
	}{
		{"round robin spreads evenly", testRoundRobin},
		{"least conn avoids a slow host", testLeastConn},
		{"least conn spreads evenly when idle", testLeastConnIdle},
		{"weighted round robin keeps to the weights", testWeighted},
		{"ip hash keeps an address on its host", testIPHash},
		{"sticky keeps a user on a host", testSticky},
		{"sticky ignores unknown hosts", testStickyUnknown},
		{"sticky moves a user whose host died", testStickyMoves},
		{"sticky is invisible to hosts", testStickyInvisible},
		{"not sticky sets no cookie", testNotSticky},

		{"a killed host costs what was in flight on it", testKilledHost},
		{"a host killed under load costs a bounded number", testKilledUnderLoad},
		{"a restarted host gets traffic again", testRestartedHost},
		{"an unhealthy host gets no traffic", testUnhealthyHost},
		{"all hosts dead is a quick 503", testAllDead},
		{"a sent request is never sent again", testNeverResent},
		{"an unsent request is sent elsewhere with its body", testRedispatchedBody},
		{"a response that breaks off is not a whole one", testTruncatedResponse},
		{"a client that leaves takes its request along", testClientAbort},

		{"big bodies pass both ways", testBigBodies},
		{"bodies stream both ways", testStreaming},
		{"slow clients hold nobody up", testSlowClient},
		{"methods and statuses pass unchanged", testStatuses},
		{"ranges and conditions pass unchanged", testContent},
		{"headers pass intact", testHeaders},
		{"paths and queries pass intact", testPaths},
		{"hosts learn about the client", testForwarded},

		{"routes send requests to their hosts", testRoutes},
		{"a route without a host leaves the others alone", testRouteDown},
		{"sticky holds within a route", testRouteSticky},
		{"sticky holds a host of each route", testRouteStickyEach},

		{"a host that fails requests is ejected for a while", testEjected},
		{"a host that fails now and then is not ejected", testNotEjected},

		{"request ids pass through all tiers", testRequestIDs},
		{"errors carry a request id", testErrorIDs},

		{"a membership change costs no request", testMembershipUnderLoad},
		{"a new member waits for its health", testMembershipHealth},
		{"a removed member finishes what it has", testMembershipDrain},
		{"a membership moves sticky users", testMembershipSticky},
		{"a membership changes a route's hosts", testMembershipRoute},
		{"a bad membership changes nothing", testMembershipBad},

		{"layer 4 spreads connections by policy", testLayer4Spread},
		{"layer 4 keeps a connection on its host", testLayer4Connection},
		{"layer 4 passes bytes as they are", testLayer4Bytes},
		{"layer 4 passes the end of one direction", testLayer4HalfClose},
		{"layer 4 connects to another host", testLayer4Connect},
		{"layer 4 without a host closes connections", testLayer4AllDead},
		{"layer 4 closes the connections of a host that is down", testLayer4Down},
		{"layer 4 membership", testLayer4Membership},
		{"layer 4 metrics count connections", testLayer4Metrics},

		{"metrics count each request once", testMetrics},
		{"operators are answered", testAdmin},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			test.run(t, start)
		})
	}
}

// interval is the health interval of the kit: short, as many tests wait for a
// check, and long enough for a machine that does other things.
const interval = 100 * time.Millisecond

// patience bounds every wait; nothing is expected to come near it.
const patience = 60 * time.Second
