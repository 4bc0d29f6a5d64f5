// Package workloads defines the load: the requests that a target gets, and the share
// of each kind of request.
//
// Everything here is deterministic: op n of a workload is a pure function of seed and
// n. This package sends no requests (package driver does), reads no clock and does not
// know how the target was started.
package workloads

// Class is the kind of an op, as it appears in histograms, tables and logs: feed,
// photo, image, like, upload. It consists of letters, digits, '-' and '_'.
type Class string

// Op is one operation of a workload: the request to send and how to judge the response.
type Op struct {
	Index  uint64 // position in the workload, from 0
	Class  Class
	Write  bool
	Method string
	Path   string // path and query, relative to the target's endpoint, as in a request line (RequestTarget)
	Header map[string]string
	Body   []byte // shared and read-only

	// Record is the record that the op reads or changes, given as the path that reads
	// it. It is "" when the op concerns no record or more than one. The consistency
	// check compares the versions in the answers of ops with the same Record.
	Record string

	// BodyRate simulates a slow uplink of the client: the body is sent at this rate in
	// bytes per second. 0 = no limit.
	BodyRate float64
	// Check lists the conditions for the response; nil = a status that an empty Check accepts.
	Check *Check

	// User is the virtual user of the op, 0..Users-1 of the workload. The driver sends
	// the cookies of this user and stores the cookies of the response. -1 = no user.
	User int

	// Login: the first op of a journey (Journeys) logs the user in. From then on the journey has a session of its own,
	// without the cookies of other journeys of the user. If the login fails, the journey ends.
	Login bool
	// Logout: the last op of a journey ends the session that its first op began. A journey that was in progress before the
	// first op of a run has no session of its own, and leaves this op out.
	Logout bool
}

// Login is implemented by workloads whose users have sessions. The driver logs every
// user in before the measurement, and logs a user in again after a lost session.
type Login interface {
	// LoginOp returns the login request of the user. Its Class is "login".
	LoginOp(user int) Op
}

// Workload is a named source of ops.
type Workload interface {
	Name() string
	// Op returns the n-th op. It is pure, and safe for concurrent use.
	Op(n uint64) Op
	// Users is the number of virtual users, 0 when there are none.
	Users() int
}
