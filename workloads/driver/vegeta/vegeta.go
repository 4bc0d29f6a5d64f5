// Package vegeta sends load through the Attacker of github.com/tsenart/vegeta. Clock,
// schedule, connections and ledger are those of package driver.
//
// The Attacker provides the worker loop. Its own clock is not used: it starts when a
// worker takes an op, so it would omit the wait for a free worker and all ops that were
// never sent. Instead the Pacer sleeps until the intended time, the Targeter takes the
// next op and a free connection, and the RoundTripper sends the op with the clock of
// driver.Flight.
//
// The number of workers equals the number of connections. Vegeta's default, a new worker
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

// slotHeader passes the slot of a ticket from the Targeter to the RoundTripper, which
// removes it. Vegeta offers no other link between the two calls for one op.
const slotHeader = "X-Stagebench-Slot"

// Driver sends load through vegeta. The zero value is ready to use. It is safe for
// concurrent use.
type Driver struct{}

// Name returns "vegeta".
func (Driver) Name() string { return "vegeta" }

// Run runs the plan; see driver.Driver.
func (Driver) Run(
	ctx context.Context, clients *driver.Clients, plan driver.Plan, sink func(results.Outcome),
) (driver.Report, error) {
	flight, err := driver.NewFlight(ctx, clients, plan, sink)
	if err != nil {
		return driver.Report{}, err
	}
	a := &attack{flight: flight, clients: clients, tickets: make([]*driver.Ticket, clients.Connections())}
	workers := uint64(clients.Connections())
	// An Attacker can be used for one attack only.
	attacker := vegeta.NewAttacker(
		vegeta.Client(&http.Client{Transport: a}),
		vegeta.Workers(workers), vegeta.MaxWorkers(workers),
		vegeta.Redirects(vegeta.NoFollow), vegeta.MaxBody(0),
		vegeta.Timeout(0), // the flight applies the timeout and records the cause
	)
	go func() {
		<-flight.Stopped() // closed by Finish at the latest
		// Without Stop, an op that no free worker takes would prolong the attack.
		attacker.Stop()
	}()
	own := hdr.NewHistogram()
	for result := range attacker.Attack(a.target, a, 0, "") {
		own.Record(int64(result.Latency))
	}
	report := flight.Finish()
	report.OwnLatency = new(own.Latency(0))
	return report, nil
}

// attack is one run. It implements vegeta's Pacer, Targeter and http.RoundTripper.
type attack struct {
	flight  *driver.Flight
	clients *driver.Clients
	tickets []*driver.Ticket // by slot; one worker at a time uses a slot
}

// Pace waits until the op is due. It does not return the wait to vegeta: vegeta would
// sleep with a coarser timer and could not be interrupted.
func (a *attack) Pace(_ time.Duration, hits uint64) (wait time.Duration, stop bool) {
	if hits == 0 {
		a.flight.Start()
	}
	return 0, !a.flight.Due()
}

// Rate is required by vegeta's Pacer interface. Only vegeta's own reports use it.
func (a *attack) Rate(time.Duration) float64 { return 0 }

// target is the Targeter: it takes the next op.
func (a *attack) target(t *vegeta.Target) error {
	ticket := a.flight.Dispatch()
	a.tickets[ticket.Slot()] = ticket
	header := a.clients.Header(ticket.Op)
	header[slotHeader] = []string{strconv.Itoa(ticket.Slot())}
	t.Method, t.URL, t.Body, t.Header = ticket.Op.Method, a.clients.URL(ticket.Op), ticket.Op.Body, header
	if !ticket.Sendable() {
		// Vegeta could not build this request and would never call RoundTrip. The op would
		// have no outcome, and its slot would never be free again.
		t.Method, t.URL = http.MethodGet, a.clients.Endpoint().String()
	}
	return nil
}

// RoundTrip sends an op. The response for vegeta has no body, because Carry has already
// read it.
func (a *attack) RoundTrip(req *http.Request) (*http.Response, error) {
	slot, err := strconv.Atoi(req.Header.Get(slotHeader))
	if err != nil {
		return nil, errors.New("vegeta: request without a slot header")
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
