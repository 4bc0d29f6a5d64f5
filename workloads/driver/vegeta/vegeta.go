// Package vegeta drives load through github.com/tsenart/vegeta's Attacker, with
// our own clock, pace, connections and ledger around it.
//
// Vegeta's Attacker brings the worker loop. What it does not bring is set
// right from outside: its clock starts when a worker has picked a tick up, so
// the wait of an op that found no free worker would be lost, and ops that were
// never sent would not appear at all. Here the Pacer sleeps until the intended
// time of the schedule, the Targeter takes the next op and a free connection,
// and the RoundTripper carries it with the clocks of driver.Flight.
//
// The workers are bounded by the connections: vegeta's default, a new worker
// whenever none is free, collapses at high rates.
package vegeta

import (
	"context"
	"errors"
	"net/http"
	"strconv"
	"time"

	vegeta "github.com/tsenart/vegeta/v12/lib"

	"github.com/stagebench/stagebench/results"
	"github.com/stagebench/stagebench/results/hdr"
	"github.com/stagebench/stagebench/workloads/driver"
)

// slotHeader carries a ticket's slot from the Targeter to the RoundTripper,
// which strips it: the order of the two is not the same for all workers.
const slotHeader = "X-Stagebench-Slot"

// Driver drives through vegeta. The zero value is ready; it may be used by many
// goroutines.
type Driver struct{}

// Name returns "vegeta".
func (Driver) Name() string { return "vegeta" }

// Run carries out the plan; see driver.Driver.
func (Driver) Run(ctx context.Context, clients *driver.Clients, plan driver.Plan, sink func(results.Outcome)) (driver.Report, error) {
	flight, err := driver.NewFlight(ctx, clients, plan, sink)
	if err != nil {
		return driver.Report{}, err
	}
	a := &attack{flight: flight, clients: clients, tickets: make([]*driver.Ticket, clients.Connections())}
	workers := uint64(clients.Connections())
	// An Attacker is good for one attack only.
	attacker := vegeta.NewAttacker(
		vegeta.Client(&http.Client{Transport: a}),
		vegeta.Workers(workers), vegeta.MaxWorkers(workers),
		vegeta.Redirects(vegeta.NoFollow), vegeta.MaxBody(0),
		vegeta.Timeout(0), // the flight bounds each op, and can tell why it ended
	)
	go func() {
		<-flight.Stopped() // at the latest when the flight lands
		// A tick that no worker takes would hold the attack beyond its end.
		attacker.Stop()
	}()
	own := hdr.NewHistogram()
	for result := range attacker.Attack(a.target, a, 0, "") {
		own.Record(int64(result.Latency))
	}
	report := flight.Land()
	report.OwnLatency = new(own.Latency(0))
	return report, nil
}

// attack is one run as vegeta sees it: its Pacer, Targeter and RoundTripper.
type attack struct {
	flight  *driver.Flight
	clients *driver.Clients
	tickets []*driver.Ticket // by slot; a slot belongs to one worker at a time
}

// Pace waits until the op is due. The wait is done here, not returned: vegeta
// would sleep it with a coarser timer and could not be interrupted.
func (a *attack) Pace(_ time.Duration, hits uint64) (wait time.Duration, stop bool) {
	if hits == 0 {
		a.flight.Start()
	}
	return 0, !a.flight.Due(hits)
}

// Rate is what vegeta prints in its own reports, which are not used.
func (a *attack) Rate(time.Duration) float64 { return 0 }

// target is the Targeter: it takes up the next op.
func (a *attack) target(t *vegeta.Target) error {
	ticket := a.flight.Dispatch()
	a.tickets[ticket.Slot()] = ticket
	header := a.clients.Header(ticket.Op)
	header[slotHeader] = []string{strconv.Itoa(ticket.Slot())}
	t.Method, t.URL, t.Body, t.Header = ticket.Op.Method, a.clients.URL(ticket.Op), ticket.Op.Body, header
	if !ticket.Sendable() {
		// Vegeta would refuse to build it and never come to Carry, which has to
		// account for it and to give the slot back.
		t.Method, t.URL = http.MethodGet, a.clients.Endpoint().String()
	}
	return nil
}

// RoundTrip carries an op and hands vegeta an answer without a body: that has
// been read already.
func (a *attack) RoundTrip(req *http.Request) (*http.Response, error) {
	slot, err := strconv.Atoi(req.Header.Get(slotHeader))
	if err != nil {
		return nil, errors.New("vegeta: a request without its slot")
	}
	delete(req.Header, slotHeader)
	delete(req.Header, "X-Vegeta-Seq")
	status, header, err := a.tickets[slot].Carry(req)
	if err != nil {
		return nil, err
	}
	return &http.Response{
		StatusCode: status, Status: http.StatusText(status), Header: header, Body: http.NoBody, Request: req,
		Proto: req.Proto, ProtoMajor: req.ProtoMajor, ProtoMinor: req.ProtoMinor,
	}, nil
}
