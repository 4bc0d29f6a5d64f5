package sut

import "cmp"

// Replication is the replication role of a database node. A node gets its first one
// in its NodeConfig. A running node takes a new one by PUT of its JSON to
// ReplicationPath at its admin address, and answers 200 with its ReplicationStatus:
//   - without a Primary, the node becomes the primary of that epoch. The epoch must
//     be higher than any epoch that the node knows. The node takes writes before it
//     answers.
//   - with a Primary, the node follows that primary and answers at once.
//
// An epoch lower than one that the node knows gets 409 and changes nothing. Any
// Replication sent to a primary gets 409, too: a primary never steps down, it must be
// stopped and started again as a replica. Bad input gets 400. Errors are JSON.
type Replication struct {
	Epoch   int64 `json:"epoch"`             // from 1; each promotion adds 1
	Primary *Peer `json:"primary,omitempty"` // the node to replicate from; nil = this node is a primary
	// Origins are the other primaries that a multi-primary node gets changes from. In
	// a ring it has one origin, which forwards the changes of all others. Otherwise
	// every other primary is an origin and sends its own changes. Origins may change
	// at any time.
	Origins      []Peer `json:"origins,omitempty"`
	MultiPrimary bool   `json:"multi_primary,omitempty"` // the topology is multi-primary, even if Origins is empty
}

// ReplicationPath is the path at a database node's admin address. GET returns a
// ReplicationStatus; PUT takes a Replication.
const ReplicationPath = "/replication"

// ReplicationStatus is the replication state of a database node.
type ReplicationStatus struct {
	Node    string `json:"node"`
	Primary bool   `json:"primary"` // it takes writes
	// Following is the node from which a replica receives changes, or to which it
	// tries to connect.
	Following string `json:"following,omitempty"`
	Epoch     int64  `json:"epoch"` // the highest epoch that the node knows
	// HeldEpoch is the epoch of the last change that this copy holds (the timeline of
	// PostgreSQL). Position grows with each change. Both can be compared between nodes
	// of one engine.
	HeldEpoch int64 `json:"held_epoch"`
	Position  int64 `json:"position"`
	// Serves reports whether the node may be read. A primary always serves. A replica
	// serves once it has caught up with its primary for the first time.
	Serves bool `json:"serves"`
	// CatchingUp reports that a replica does not serve only because it has not caught up. It holds all changes up to
	// Position, so it can be promoted.
	CatchingUp bool `json:"catching_up,omitempty"`
	// Connected reports whether a replica receives changes now.
	Connected bool `json:"connected"`
	// LagNS is the time between the commit of the last change or heartbeat at the
	// primary and its application here; -1 = nothing was applied yet.
	LagNS    int64 `json:"lag_ns"`
	Rebuilds int64 `json:"rebuilds"` // number of full copies fetched from the primary
	// Followers is the position of each replica that is connected to this primary.
	Followers map[string]int64 `json:"followers,omitempty"`
	// Kept names the old copies that the node keeps until their losses were collected, see LostPath.
	Kept []string `json:"kept,omitempty"`
	// Applied counts the applied changes of each other origin. Multi-primary only.
	Applied map[string]int64 `json:"applied,omitempty"`
	Discarded
	Problem string `json:"problem,omitempty"` // why it does not serve or is not connected, for people
}

// Before reports whether a copy holds less than another one. A primary holds more than
// any replica. Replicas are compared by HeldEpoch and not by Epoch: a replica
// learns of a new epoch before it holds a change of it. A copy that holds a change of
// an epoch holds all changes of earlier epochs.
func (s ReplicationStatus) Before(other ReplicationStatus) bool {
	return cmp.Or(
		cmp.Compare(s.primaryEpoch(), other.primaryEpoch()),
		cmp.Compare(s.HeldEpoch, other.HeldEpoch),
		cmp.Compare(s.Position, other.Position),
	) < 0
}

// primaryEpoch is the epoch of a primary, 0 for a replica.
func (s ReplicationStatus) primaryEpoch() int64 {
	if s.Primary {
		return s.Epoch
	}
	return 0
}

// BucketsPath is the path at the admin address of a primary of a shard. The rows of users are in buckets, and each
// bucket is at one shard:
//   - GET returns what the shard knows of buckets: a list of ShardBucket;
//   - PUT takes a BucketMove to this shard, moves the bucket, and returns a BucketMoved. From a shard to itself, it
//     takes back a bucket that was released and has no owner;
//   - DELETE takes the same BucketMove, and deletes the rows at the shard that the bucket was moved from.
//
// After an error the bucket may be without an owner, until the same request, with a higher epoch, succeeds. Errors are
// JSON.
const BucketsPath = "/buckets"

// BucketLoadPath is the path at the admin address of a web node. GET returns how many operations the node
// has sent for the rows of each bucket since it started: a list of numbers.
const BucketLoadPath = "/bucket-load"

// BucketState is what a shard has to do with a bucket.
type BucketState string

// The states of a bucket at a shard.
const (
	BucketOwned    BucketState = "owned"
	BucketFenced   BucketState = "fenced"   // owned, and not written while the fence holds
	BucketCopied   BucketState = "copied"   // its rows were copied from its owner
	BucketReleased BucketState = "released" // another shard owns it; its rows are still here
	BucketGone     BucketState = "gone"     // another shard owns it, and its rows were deleted here
)

// ShardBucket is the state of a bucket at a shard.
type ShardBucket struct {
	Bucket int `json:"bucket"`
	// Epoch is when the state changed last, except for fences. It grows with each move of a bucket in the system.
	Epoch int64       `json:"epoch"`
	State BucketState `json:"state"`
}

// Owned reports whether the shard owns the bucket.
func (b ShardBucket) Owned() bool { return b.State == BucketOwned || b.State == BucketFenced }

// BucketMove asks the shard To for a bucket of the shard From.
type BucketMove struct {
	Bucket int   `json:"bucket"`
	From   int   `json:"from"`
	To     int   `json:"to"`
	Epoch  int64 `json:"epoch"` // it and the next one are higher than those of every earlier change
	// Databases are those of all shards, as in Wiring.Uses.
	Databases []Peer `json:"databases"`
	// BreathNS is a wait after the copy, before writes of the bucket are held back: a host that has used up its CPU budget
	// gets it again meanwhile.
	BreathNS int64 `json:"breath_ns,omitempty"`
	// LeaseNS is the time for which writes of the bucket may be held back. After it the move fails.
	LeaseNS int64 `json:"lease_ns"`
}

// BucketMoved is the result of a BucketMove.
type BucketMoved struct {
	Rows    int   `json:"rows"`
	PauseNS int64 `json:"pause_ns"` // time for which writes of the bucket were held back
}
