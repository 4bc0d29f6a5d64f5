// Package results defines the values of a measurement: outcomes, ledgers, steps,
// cells and runs, with their warnings.
//
// It does no I/O and prints nothing. Times inside a run are nanoseconds since
// the start of the step on the monotonic clock; fields that end in _ns are
// nanoseconds, _rps are requests per second.
package results

import "fmt"

// Fate is the result of one op.
type Fate uint8

// The fates of an op. Each op has exactly one. Ledger documents how they add up.
const (
	OK             Fate = iota // complete response with a status below 400
	HTTPError                  // complete response with a status of 400 or more, or one that fails the workload's check
	TransportError             // sent, but the connection broke before the response was complete
	Timeout                    // sent, but no complete response within the timeout
	InFlight                   // sent, but still without an answer or a timeout when the step ended
	ConnectError               // not sent: no connection could be made
	Unsent                     // not sent: the step ended first
)

func (f Fate) String() string {
	return [...]string{"ok", "http_error", "transport_error", "timeout", "in_flight", "connect_error", "unsent"}[f]
}

// Failed reports whether the fate counts as a failure.
func (f Fate) Failed() bool { return f != OK }

// Outcome is the result of one op with its times, which are nanoseconds since
// the start of the step. An op that was never sent has Sent = -1.
type Outcome struct {
	Index       uint64
	Class       string
	Intended    int64 // set by the schedule
	Free        int64 // when the op's connection slot became free
	Dispatched  int64 // when the client started to work on the op
	Sent        int64 // when the request was handed to a connection
	Done        int64 // last byte of the body, or the moment it failed
	Status      int   // HTTP status, 0 without a response
	BytesIn     int64
	BytesOut    int64
	Paced       int64 // time that the client spent on purpose to send the body, to simulate a slow user connection
	Fate        Fate
	SessionLost bool   // a 401 for a user who was logged in; not counted as an error
	CheckFailed bool   // complete response that fails the workload's check
	Redirected  bool   // success that only points to another place; the driver does not go there
	Record      string // path of the single record that the op reads or writes; "" = none, or more than one
	Created     string // path of the record that the op made, from the response; "" = none
	Write       bool   // the op changes stored data
	User        int    // virtual user of the op, -1 = none
	Version     int64  // version of the record that was returned or written, from the response's header; 0 = none
	Cached      bool   // the response's header says that a cache answered
	Edge        string // what the HTTP cache nearest to the client did: "hit", "uri-miss", ...; "" = there was none
	Error       string // for a failure: its cause in a few words, without addresses
}

// Lag is the delay that the client itself caused: from the moment at which the
// op was due and a slot was free until the client started it.
func (o Outcome) Lag() int64 { return o.Dispatched - max(o.Intended, o.Free) }

// Wait is the time from the intended to the actual start: lag plus the wait for
// a free connection.
func (o Outcome) Wait() int64 { return o.Sent - o.Intended }

// Service is the time from the actual start to the end.
func (o Outcome) Service() int64 { return o.Done - o.Sent }

// Response is the response time of the target for a user who arrived at the
// intended time. It excludes the simulated slow connection (Paced).
func (o Outcome) Response() int64 { return o.Done - o.Intended - min(o.Paced, max(o.Done-o.Sent, 0)) }

// Ledger counts every op of a step. The sums must match:
//
//	Scheduled = Sent + Unsent + ConnectError
//	Sent      = OK + HTTPError + TransportError + Timeout + InFlight
//
// SessionLost and CheckFailed are included in HTTPError, and Redirected in OK. SessionLost does not
// count as an error.
type Ledger struct {
	Scheduled      int64 `json:"scheduled"`
	Unsent         int64 `json:"unsent"`
	ConnectError   int64 `json:"connect_error"`
	Sent           int64 `json:"sent"`
	OK             int64 `json:"ok"`
	HTTPError      int64 `json:"http_error"`
	TransportError int64 `json:"transport_error"`
	Timeout        int64 `json:"timeout"`
	InFlight       int64 `json:"in_flight"`
	SessionLost    int64 `json:"session_lost"`
	CheckFailed    int64 `json:"check_failed"`
	Redirected     int64 `json:"redirected"`
}

// Count adds one outcome. It does not change Scheduled, which comes from the
// schedule: this is how Check finds an op that was lost.
func (l *Ledger) Count(o Outcome) {
	*[...]*int64{&l.OK, &l.HTTPError, &l.TransportError, &l.Timeout, &l.InFlight, &l.ConnectError, &l.Unsent}[o.Fate]++
	if o.Fate >= ConnectError {
		return // never sent
	}
	l.Sent++
	if o.SessionLost {
		l.SessionLost++
	}
	if o.CheckFailed {
		l.CheckFailed++
	}
	if o.Redirected {
		l.Redirected++
	}
}

// Errors is the number of failed ops, without lost sessions.
func (l Ledger) Errors() int64 {
	return l.Unsent + l.ConnectError + l.HTTPError - l.SessionLost + l.TransportError + l.Timeout + l.InFlight
}

// ErrorRate is Errors as a share of Scheduled, 0 when nothing was scheduled.
func (l Ledger) ErrorRate() float64 {
	if l.Scheduled == 0 {
		return 0
	}
	return float64(l.Errors()) / float64(l.Scheduled)
}

// Check returns an error if the sums of the ledger do not match.
func (l Ledger) Check() error {
	if sum := l.Sent + l.Unsent + l.ConnectError; l.Scheduled != sum {
		return fmt.Errorf("op counts do not add up: scheduled %d, but sent %d + unsent %d + connect_error %d = %d",
			l.Scheduled, l.Sent, l.Unsent, l.ConnectError, sum)
	}
	if sum := l.OK + l.HTTPError + l.TransportError + l.Timeout + l.InFlight; l.Sent != sum {
		return fmt.Errorf("op counts do not add up: "+
			"sent %d, but ok %d + http_error %d + transport_error %d + timeout %d + in_flight %d = %d",
			l.Sent, l.OK, l.HTTPError, l.TransportError, l.Timeout, l.InFlight, sum)
	}
	return nil
}

// Unanswered is the number of ops that were sent without a complete response.
// The server may have counted them during the step, later, or not at all.
func (l Ledger) Unanswered() int64 { return l.TransportError + l.Timeout + l.InFlight }

// CheckServer compares the number of requests that the server counted with the
// ledger. Both may differ by the unanswered requests, those of this step and
// those that an earlier step left.
func (l Ledger) CheckServer(served, earlier int64) error {
	if diff := l.Sent - served; diff < -earlier || diff > l.Unanswered() {
		return fmt.Errorf("the server counted %d requests, the client sent %d: off by %d, "+
			"but only %d requests were unanswered, and %d of an earlier step",
			served, l.Sent, diff, l.Unanswered(), earlier)
	}
	return nil
}

// Journeys counts the journeys in a step of a workload whose users think between their ops. Its offered rate is that of
// PlannedOps: a target that answers slowly delays the later ops of journeys, and so gets fewer ops in the step.
type Journeys struct {
	Begun  int64 `json:"begun"`  // in the step, by the schedule
	Joined int64 `json:"joined"` // in progress at the begin of the step
	Ended  int64 `json:"ended"`  // in the step, with their last op
	// GivenUp counts the journeys that ended because their login failed.
	GivenUp    int64 `json:"given_up,omitempty"`
	PlannedOps int64 `json:"planned_ops"` // ops that are due in the step if all answers take no time
	// NotDue counts the planned ops that were not due in the step, because earlier ops of their journeys took time, were
	// not sent or failed. They are not in the ledger.
	NotDue int64 `json:"not_due"`
}

// DueShare returns the share of the planned ops that were due.
func (j Journeys) DueShare() float64 { return 1 - float64(j.NotDue)/float64(max(j.PlannedOps, 1)) }
