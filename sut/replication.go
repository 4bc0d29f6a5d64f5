package sut

import "cmp"

// Replication is what a database node is told about the copies of its database:
// whom it follows, and since which epoch. A node gets it at birth, and a running
// one by PUT of its JSON to ReplicationPath at its admin address, which makes it
// what the document says and answers 200 with its ReplicationStatus:
//   - without a Primary it becomes the primary of that epoch, which must be
//     higher than any it has known, and takes writes when it answers;
//   - with a Primary it follows that one, and answers at once.
//
// An epoch lower than one that the node has known gets 409 and changes nothing,
// as does any document for a primary: one does not step down, it is ended and
// started again as a replica. Bad input gets 400. Errors are JSON.
type Replication struct {
	Epoch   int64 `json:"epoch"`             // from 1 on; one higher with each promotion
	Primary *Peer `json:"primary,omitempty"` // whom it follows; nil = it is the primary
	// Origins are the other primaries when there are several and this is one of them:
	// those that it gets changes from. In a ring that is one, who hands on what it
	// got from its own; else they are all others, each of whom sends its own. A
	// primary of several may be told of other origins at any time.
	Origins []Peer `json:"origins,omitempty"`
	Several bool   `json:"several,omitempty"` // there are several primaries, also while Origins is empty
}

// ReplicationPath is where a database node's admin address answers GET with its
// ReplicationStatus, and takes a Replication by PUT.
const ReplicationPath = "/replication"

// ReplicationStatus is what a database node says of its copy.
type ReplicationStatus struct {
	Node    string `json:"node"`
	Primary bool   `json:"primary"` // it takes writes
	// Following is the node that a replica receives changes from, or tries to.
	Following string `json:"following,omitempty"`
	Epoch     int64  `json:"epoch"` // of the last primary that it has known
	// HeldEpoch and Position are those of the last change that the copy holds. HeldEpoch
	// grows with each primary from which changes came, however late these came (of
	// PostgreSQL it is the timeline), Position with each change; those of nodes of one
	// engine can be compared.
	HeldEpoch int64 `json:"held_epoch"`
	Position  int64 `json:"position"`
	// Serves says whether it may be read: a primary always, a replica when it has
	// once had all that its primary had.
	Serves bool `json:"serves"`
	// Connected says whether a replica receives changes now.
	Connected bool `json:"connected"`
	// LagNS is how long after its commit at the primary the last change, or the
	// last heartbeat, was applied here; -1 = none was yet.
	LagNS    int64 `json:"lag_ns"`
	Rebuilds int64 `json:"rebuilds"` // times that the whole copy was fetched anew
	// Followers is how far the connected replicas of a primary are, by name.
	Followers map[string]int64 `json:"followers,omitempty"`
	// Of one of several primaries: the changes of each other origin that were
	// applied, and the rows for which two origins had changes at the same time, of
	// which the later one won.
	Applied   map[string]int64 `json:"applied,omitempty"`
	Conflicts int64            `json:"conflicts"`
	Problem   string           `json:"problem,omitempty"` // why it does not serve or is not connected, for people
}

// Before reports whether a copy holds less than another one. A primary holds what it was
// promoted with, and maybe writes of its epoch since. For replicas it is not the epoch
// that counts, which they are told before they hold anything of it, but that of what they
// hold: a change of a later one covers all of those before it.
func (s ReplicationStatus) Before(other ReplicationStatus) bool {
	return cmp.Or(cmp.Compare(s.reign(), other.reign()), cmp.Compare(s.HeldEpoch, other.HeldEpoch), cmp.Compare(s.Position, other.Position)) < 0
}

// reign is the epoch of a primary, 0 for others.
func (s ReplicationStatus) reign() int64 {
	if s.Primary {
		return s.Epoch
	}
	return 0
}

// LostPath is where a database node's admin address answers GET with its Lost, and
// POST of a Replay with a Replayed.
const LostPath = "/replication/lost"

// Lost is what a database held when it was the primary, and what the one that took
// its place never got. The node keeps the copy that it had until it is replaced
// again.
type Lost struct {
	Node string `json:"node"`
	// Epoch is that of the copy that was kept; 0 = none was, because nothing was lost
	// or the node has always been what it is.
	Epoch int64 `json:"epoch"`
	// Commits is how many commits were lost, each of one transaction or of several
	// that waited for the disk together; heartbeats do not count.
	Commits int          `json:"commits"`
	Changes []LostChange `json:"changes"`
	// Replayed is set when all of it has been done once more already.
	Replayed bool `json:"replayed"`
	// Partial says what cannot be seen of what was lost, for people; empty = nothing.
	Partial string `json:"partial,omitempty"`
}

// LostChange is one row that was changed, or the last of several changes to it.
type LostChange struct {
	Table string `json:"table"`
	Key   string `json:"key"` // of the row; of several columns with a slash between them
	Op    Change `json:"op"`
	AtUS  int64  `json:"at_us,omitempty"` // when it was committed, in microseconds since the Unix epoch; 0 = not known
	// Old and New are the row by column: of an update those that were changed.
	Old map[string]any `json:"old,omitempty"`
	New map[string]any `json:"new,omitempty"`
}

// Change is what was done to a row.
type Change string

// The changes of rows.
const (
	Inserted Change = "insert"
	Updated  Change = "update"
	Deleted  Change = "delete"
)

// Replay asks a database to do what was lost once more, at the primary that is
// named.
type Replay struct {
	Primary Peer `json:"primary"`
}

// Replayed says what became of what was lost. A second time is refused with 409,
// as likes would count twice; where the first one broke off, it may be begun anew,
// and what has an id of its own is found in place.
type Replayed struct {
	Done    map[string]int `json:"done"`    // operations of the store by name
	There   int            `json:"there"`   // were in place already
	Refused []string       `json:"refused"` // could not be done, and why
}
