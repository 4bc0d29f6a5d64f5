// Package results is the vocabulary of what was measured: outcomes, ledgers,
// steps, cells and runs, with the doubts that travel with them.
//
// It does no I/O and prints nothing. Times inside a run are nanoseconds since
// the start of the step on the monotonic clock; fields that end in _ns are
// nanoseconds, _rps are requests per second.
package results

import "fmt"

// Fate is what became of one op.
type Fate uint8

// The fates of an op; each op has exactly one. Ledger says how they add up.
const (
	OK             Fate = iota // a complete response with a status below 400
	HTTPError                  // a complete response with a status of 400 or more, or not what the workload asks for
	TransportError             // sent, but the connection broke before the response was complete
	Timeout                    // sent, but no complete response within the bound: censored, "at least T"
	InFlight                   // sent, and neither answered nor given up when the step had to end
	ConnectError               // never sent: no connection could be made
	Unsent                     // scheduled, but the step ended before it was its turn
)

func (f Fate) String() string {
	return [...]string{"ok", "http_error", "transport_error", "timeout", "in_flight", "connect_error", "unsent"}[f]
}

// Failed reports whether the fate counts as a failure.
func (f Fate) Failed() bool { return f != OK }

// Outcome is the fate of one op, with its clocks. The clocks of a step start
// at 0. An op that was never sent has Sent = -1.
type Outcome struct {
	Index       uint64
	Class       string
	Intended    int64 // fixed by the schedule
	Free        int64 // when the slot that carried it became free
	Dispatched  int64 // when the client took it up
	Sent        int64 // when the request was handed to a connection
	Done        int64 // last byte of the body, or the moment it failed
	Status      int   // HTTP status, 0 without a response
	BytesIn     int64
	BytesOut    int64
	Paced       int64 // how long the client took on purpose to send the body: a slow line of its own
	Fate        Fate
	SessionLost bool   // a 401 to a user who had been logged in; counted apart from errors
	CheckFailed bool   // a complete response that is not what the workload asks for
	Record      string // path of the one record that the op is about; "" = none, or several
	Write       bool   // the op changes what is stored
	User        int    // the virtual user whose op it is, -1 = nobody
	Version     int64  // of the record shown or written, from the response's header; 0 if it had none
	Cached      bool   // by the response's header, the record shown was read from a cache
	Error       string // for a failure: its cause in a few words, without addresses
}

// Lag is the client's own lateness: how long after both the intended time and
// a free slot were there it took the op up. Only this can blame the client.
func (o Outcome) Lag() int64 { return o.Dispatched - max(o.Intended, o.Free) }

// Wait is the time from the intended to the actual start: lag plus waiting for
// a free connection.
func (o Outcome) Wait() int64 { return o.Sent - o.Intended }

// Service is the time from the actual start to the end.
func (o Outcome) Service() int64 { return o.Done - o.Sent }

// Response is what a user who arrived at the intended time felt of the target:
// the time until the end, less what his own slow line took of it.
func (o Outcome) Response() int64 { return o.Done - o.Intended - min(o.Paced, max(o.Done-o.Sent, 0)) }

// Ledger accounts for every op of a step. It closes:
//
//	Scheduled = Sent + Unsent + ConnectError
//	Sent      = OK + HTTPError + TransportError + Timeout + InFlight
//
// SessionLost is a part of HTTPError that is counted apart from errors, and
// CheckFailed the part whose response was complete but not what the workload
// asks for.
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
}

// Count adds one outcome to every column but Scheduled, which the schedule
// alone decides: that is what lets Check find an op that got lost.
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
}

// Errors is the number of ops that failed, lost sessions left out.
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

// Check says where the ledger does not close, or nil.
func (l Ledger) Check() error {
	if sum := l.Sent + l.Unsent + l.ConnectError; l.Scheduled != sum {
		return fmt.Errorf("ledger does not close: scheduled %d, but sent %d + unsent %d + connect_error %d = %d",
			l.Scheduled, l.Sent, l.Unsent, l.ConnectError, sum)
	}
	if sum := l.OK + l.HTTPError + l.TransportError + l.Timeout + l.InFlight; l.Sent != sum {
		return fmt.Errorf("ledger does not close: "+
			"sent %d, but ok %d + http_error %d + transport_error %d + timeout %d + in_flight %d = %d",
			l.Sent, l.OK, l.HTTPError, l.TransportError, l.Timeout, l.InFlight, sum)
	}
	return nil
}

// Unanswered is the number of ops that were sent and got no whole answer: the
// server may have counted them, now or later, or not at all.
func (l Ledger) Unanswered() int64 { return l.TransportError + l.Timeout + l.InFlight }

// CheckServer compares the server's own count of requests with the ledger's:
// they may differ by what was sent and never answered. The server may also have
// finished some of what an earlier step had left unanswered.
func (l Ledger) CheckServer(served, earlier int64) error {
	if diff := l.Sent - served; diff < -earlier || diff > l.Unanswered() {
		return fmt.Errorf("the server counted %d requests, the client sent %d: off by %d, "+
			"and only %d were sent without an answer, %d by an earlier step",
			served, l.Sent, diff, l.Unanswered(), earlier)
	}
	return nil
}
