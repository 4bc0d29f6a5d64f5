// Package results is the vocabulary of what was measured: outcomes, ledgers,
// steps, cells and runs, with the doubts that travel with them.
//
// It does no I/O and prints nothing. Times inside a run are nanoseconds since
// the start of the step on the monotonic clock; fields that end in _ns are
// nanoseconds, _rps are requests per second.
package results

// Fate is what became of one op.
type Fate uint8

// The fates of an op; each op has exactly one. ledger.go says how they add up.
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
