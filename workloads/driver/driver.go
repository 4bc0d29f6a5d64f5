// Package driver sends a workload to a target by a schedule and records the outcome of
// every op.
//
// It gets addresses and does not know how the target was started. Response times start
// at the intended time of the schedule. So a server that stalls cannot hide the stall by
// slowing the client down (coordinated omission). The ledger accounts for every scheduled
// op, including ops that were never sent.
//
// Times are nanoseconds since the start of the run, on the monotonic clock. Each
// implementation has its own package (driver/vegeta). Implementations share Flight, which
// owns the clock, the slots and the outcomes. Every implementation must pass the
// conformance kit drivertest.
package driver

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"time"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
)

// CatchUp describes what every driver does when it is behind schedule: it sends the
// overdue ops as fast as its connections allow.
const CatchUp = "unlimited over the bounded connections"

// Plan is one run of a driver.
type Plan struct {
	Workload workloads.Workload
	First    uint64 // number of the run's first journey in the workload; without journeys, position of its first op
	// Schedule has the begins of the journeys; without journeys, the intended times of the ops.
	Schedule pace.Schedule
	Duration time.Duration // of the schedule; the run then waits for the ops in flight
	// Timeout is the maximum duration of one request and its response. The upload time
	// of a body with a BodyRate is added to it.
	Timeout time.Duration
	// Drain is the maximum wait for ops in flight after the run was cancelled.
	Drain time.Duration
	// Grace is the grace period after the end of the schedule: overdue ops are still
	// sent during it and count as unsent after it. Without it, a delay of microseconds in
	// the client would leave the last op of every run unsent. 0 = 100 ms.
	Grace time.Duration
}

// defaultGrace is the grace period of a plan that sets none.
const defaultGrace = 100 * time.Millisecond

// Validate returns an error if the plan is incomplete or a value is out of range.
func (p Plan) Validate() error {
	switch {
	case p.Workload == nil || p.Schedule == nil:
		return errors.New("plan: workload and schedule are required")
	case p.Duration <= 0:
		return fmt.Errorf("plan: duration %v: want more than 0", p.Duration)
	case p.Timeout <= 0:
		return fmt.Errorf("plan: timeout %v: want more than 0", p.Timeout)
	case p.Grace < 0:
		return fmt.Errorf("plan: grace %v: want 0 or more", p.Grace)
	}
	return nil
}

// journeys returns the journeys of the plan.
func (p Plan) journeys() pace.Journeys { return pace.NewJourneys(p.Workload, p.First, p.Schedule) }

// hasJourneys reports whether the ops of the plan come in journeys.
func (p Plan) hasJourneys() bool {
	_, has := p.Workload.(workloads.Journeys)
	return has
}

// until returns the plan with another duration.
func (p Plan) until(d time.Duration) Plan {
	p.Duration = d
	return p
}

// Report summarizes a run.
type Report struct {
	Start     time.Time     // wall time of the run's time 0
	Elapsed   time.Duration // until the last op ended, at least Window
	Window    time.Duration // of the schedule: Duration, or less when the run was cancelled
	Scheduled int64         // ops that were due, plus logins after lost sessions
	// Journeys counts the journeys of the run; nil = the workload has none.
	Journeys  *results.Journeys
	Connected int64 // connections made in the run
	Switched  int64 // ops whose slot had to reconnect, from the source address of their user
	// InFlightNS is the number of ops in flight, counted at the transport and integrated
	// over time. By Little's law it equals the sum of the service times of the outcomes if
	// no op was lost.
	InFlightNS int64
	// Surplus is the number of times that the server sent bytes that belong to no response.
	Surplus int64
	// Stalls are the times in which the client did not run, without the shortest ones.
	Stalls []results.Stall
	// OwnLatency is the latency that the engine measured with its own clock, for
	// comparison; nil if the engine has no clock.
	OwnLatency *results.Latency
}

// Driver runs plans. Run calls sink once for each scheduled op, from one goroutine. It
// returns an error only if the run could not start. Cancelling ctx ends the run early and
// is not an error.
type Driver interface {
	Name() string
	Run(ctx context.Context, clients *Clients, plan Plan, sink func(results.Outcome)) (Report, error)
}

// ClientConfig configures Clients.
type ClientConfig struct {
	// Endpoint is the base URL of the target.
	Endpoint *url.URL
	// Addresses are the host:port addresses of the endpoint. Connections are spread over
	// them. When a connection to one address fails, the next address is tried. Empty = the
	// address of the endpoint.
	Addresses []string
	// Fallbacks are tried when no address accepts a connection, for example the origin behind dead edge caches. Such a
	// connection is closed after fallbackLife, and the addresses are tried again.
	Fallbacks []string
	// Header is sent with every request. A header of the op replaces it.
	Header map[string]string
	// TLS configures https endpoints; nil = the root certificates of the system. The
	// protocol is always HTTP/1.1, because a connection carries one op at a time.
	TLS *tls.Config
	// Connections is the maximum number of connections, and so of ops in flight.
	Connections int
	// Sources are the local addresses of the connections, used round robin. Empty = the
	// system chooses.
	Sources []netip.Addr
	// SourcePerUser gives each user one source address for all ops: user modulo sources. So a target that distinguishes
	// clients by address sees the same client again. A user's op takes a free slot whose connection has the address. If
	// there is none, it takes another slot, which reconnects: connecting counts into response.
	SourcePerUser bool
	// ConnectionLife is the maximum age of a connection; 0 = no limit.
	ConnectionLife time.Duration
	// DialTimeout is the maximum time to make a connection.
	DialTimeout time.Duration
	// Log counts what the transport reports only in the standard log; nil = it is not counted.
	Log *TransportLog
}

// Validate returns an error if a value is missing or out of range.
func (c ClientConfig) Validate() error {
	switch {
	case c.Endpoint == nil || c.Endpoint.Host == "":
		return errors.New("clients: an endpoint such as http://127.0.0.1:8080 is required")
	case c.Connections < 1 || c.Connections > 65_536:
		return fmt.Errorf("clients: %d connections: want 1 to 65536", c.Connections)
	case len(c.Fallbacks) > 0 && len(c.Addresses) == 0:
		return errors.New("clients: fallbacks need addresses")
	case c.ConnectionLife < 0:
		return fmt.Errorf("clients: connection life %v: want 0 or more", c.ConnectionLife)
	case c.DialTimeout <= 0:
		return fmt.Errorf("clients: dial timeout %v: want more than 0", c.DialTimeout)
	}
	return nil
}
