// Package driver carries out a workload against a target by a schedule, and
// says what became of every op.
//
// It gets addresses and never knows how the target was started. Its clocks run
// from the intended time that the schedule fixes, so a server that stalls
// cannot hide it by slowing the client down; its ledger accounts for every
// scheduled op, also for those that were never sent.
//
// Times are nanoseconds since the start of the run, on the monotonic clock.
// Implementations live in their own packages (driver/vegeta) and share Flight,
// which owns the clock, the slots, the clients and the ledger; drivertest is
// the kit that each of them must pass.
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

// CatchUp is how every driver here behaves when it is behind schedule: it sends
// what is overdue as fast as its connections allow.
const CatchUp = "unlimited over the bounded connections"

// Plan is one run of a driver.
type Plan struct {
	Workload workloads.Workload
	First    uint64 // position in the workload of the run's first op
	Schedule pace.Schedule
	Duration time.Duration // of the schedule; ops in flight then are still waited for
	// Timeout bounds one op, from the moment it was dispatched; what a slow line
	// of the op's own takes comes on top.
	Timeout time.Duration
	// Drain bounds the wait for ops in flight when the run was cancelled, be it
	// before the end of the schedule or after.
	Drain time.Duration
	// LastCall is how long after the end of the schedule an overdue op is still sent, so
	// that the client's own few microseconds of lateness do not turn the last op of every
	// run into an unsent one; 0 = 100 ms. What is overdue after it is unsent.
	LastCall time.Duration
}

// defaultLastCall is what a plan has that does not say.
const defaultLastCall = 100 * time.Millisecond

// Validate says what is wrong with a plan.
func (p Plan) Validate() error {
	switch {
	case p.Workload == nil || p.Schedule == nil:
		return errors.New("plan: workload and schedule are required")
	case p.Duration <= 0:
		return fmt.Errorf("plan: duration %v: want more than 0", p.Duration)
	case p.Timeout <= 0:
		return fmt.Errorf("plan: timeout %v: want more than 0", p.Timeout)
	case p.LastCall < 0:
		return fmt.Errorf("plan: last call %v: want 0 or more", p.LastCall)
	}
	return nil
}

// Report is what a run says besides its outcomes.
type Report struct {
	Start     time.Time     // wall time of the run's time 0
	Elapsed   time.Duration // until the last op was done or given up
	Window    time.Duration // of the schedule: Duration, or less when the run was cancelled
	Scheduled int64         // ops that the schedule, and lost sessions, called for
	// InFlightNS is the integral over time of the number of ops in flight,
	// counted at the transport, and ServiceNS the sum of service times of the
	// outcomes. By Little's law they are equal when nothing was lost.
	InFlightNS, ServiceNS int64
	// OwnLatency is what the engine underneath would have reported as latency by
	// its own clock, for comparison; nil when it has none.
	OwnLatency *results.Latency
}

// Driver runs plans. Sink is called from one goroutine at a time, once for each
// scheduled op. Run returns an error only when the run could not take place;
// cancelling ctx ends the run early and is not an error.
type Driver interface {
	Name() string
	Run(ctx context.Context, clients *Clients, plan Plan, sink func(results.Outcome)) (Report, error)
}

// ClientConfig describes the clients that a driver sends from.
type ClientConfig struct {
	// Endpoint is the base URL of the target.
	Endpoint *url.URL
	// Addresses are host:port where the endpoint can be reached, any of them.
	// Connections are spread over them; one that cannot be made at its address is
	// made at the next. Empty = the endpoint's own.
	Addresses []string
	// Header is sent with every request; what an op sets itself wins.
	Header map[string]string
	// TLS is for endpoints of scheme https; nil = the system's roots. HTTP/1.1 is
	// spoken either way: a connection carries one op at a time.
	TLS *tls.Config
	// Connections bounds the connections, and with them the ops in flight.
	Connections int
	// Sources are the local addresses that connections are made from, in turn;
	// empty = the system chooses.
	Sources []netip.Addr
	// ConnectionLife is how long a connection is used before it is renewed;
	// 0 = for ever.
	ConnectionLife time.Duration
	// DialTimeout bounds the making of a connection.
	DialTimeout time.Duration
}

// Validate says what is wrong with the configuration.
func (c ClientConfig) Validate() error {
	switch {
	case c.Endpoint == nil || c.Endpoint.Host == "":
		return errors.New("clients: an endpoint such as http://127.0.0.1:8080 is required")
	case c.Connections < 1 || c.Connections > 65_536:
		return fmt.Errorf("clients: %d connections: want 1 to 65536", c.Connections)
	case c.ConnectionLife < 0 || c.DialTimeout <= 0:
		return errors.New("clients: connection life and dial timeout must not be negative, and the latter not 0")
	}
	return nil
}
