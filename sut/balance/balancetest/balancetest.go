// Package balancetest is the kit that every load-balancer engine must pass.
//
// It starts web hosts of its own in this process, has the engine balance them,
// kills and restarts hosts, and looks at what clients and hosts see. It never
// starts an engine (the test that calls Run does), never sleeps and never
// measures time: it waits for events, each with a deadline.
//
// Clients of the kit use a new connection for each request and repeat nothing,
// so that every failure shows.
package balancetest

import (
	"net/http"
	"testing"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Setup is what an engine is asked to balance.
type Setup struct {
	// Upstreams are the web hosts, all of them up.
	Upstreams []sut.Peer
	// Policy is "round_robin" or "least_conn".
	Policy string
	// Sticky asks for the cookie "lb".
	Sticky bool
	// HealthInterval is the time between two health checks of a host.
	HealthInterval time.Duration
}

// System is a balancer that serves.
type System struct {
	// URL is its public side, without a slash at the end.
	URL string
	// Admin answers /metrics, /healthz, /readyz and /status.
	Admin http.Handler
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
