package results

import "fmt"

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
