// Package workloads is the vocabulary of load: what is asked of a target, and
// how often.
//
// Everything here is deterministic from a seed: the n-th op of a workload is a
// pure function of (seed, n). Nothing here sends anything (workloads/driver
// does), reads a clock or knows how the target was started.
package workloads

// Class names the kind of an op in every histogram, table and log: feed,
// photo, image, like, upload ... Letters, digits, '-' and '_' only.
type Class string

// Op is one intention: an operation to be carried out at its intended time.
type Op struct {
	Index  uint64 // position in the workload, from 0
	Class  Class
	Write  bool
	Method string
	Path   string // path and query, relative to the target's endpoint
	Header map[string]string
	Body   []byte // shared, never written to

	// Record is the one record that the op shows or changes, as the path at which
	// it can be read; "" when it is about none, or about several. Ops with the same
	// Record are held against each other by the versions in their answers.
	Record string

	// BodyRate is how fast the client sends the body, in bytes per second: a slow
	// line. 0 = as fast as the connection takes it.
	BodyRate float64
	// Check says what the response has to be like; nil = a status below 400.
	Check *Check

	// User is the virtual user who does it, 0..Users-1 of the workload: the
	// driver sends the cookies of that user and keeps those that come back.
	// -1 for an op of nobody.
	User int
}

// Login says how a virtual user starts a session, for workloads whose users
// have one. The driver logs users in before the measurement, and again when
// their session was lost.
type Login interface {
	// LoginOp returns the op that logs the user in. Its Class is "login".
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
