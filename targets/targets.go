// Package targets is the vocabulary of running systems that load is aimed at.
//
// A target is either a topology that we brought up (targets/local) or an
// address that somebody gave us (targets/attach). The driver never sees this
// package: it gets addresses. Nothing here starts a process.
package targets

import "github.com/stagebench/stagebench/sut"

// State is what a node is doing.
type State string

// The states of a node.
const (
	Starting State = "starting"
	Serving  State = "serving"
	Paused   State = "paused"
	Dead     State = "dead" // killed or crashed; supervision brings it back
	Stopped  State = "stopped"
)

// ReplicationRole is what a database is among its copies.
type ReplicationRole string

// The standings of a database.
const (
	Primary ReplicationRole = "primary" // takes the writes
	Replica ReplicationRole = "replica"
)

// NodeStatus is one node of a target, as `stagebench status` shows it.
type NodeStatus struct {
	Node     string     `json:"node"`
	Host     string     `json:"host"`
	Role     sut.Role   `json:"role"`
	Engine   sut.Engine `json:"engine"`
	Version  string     `json:"version,omitempty"`
	State    State      `json:"state"`
	Address  string     `json:"address"`         // host:port
	Admin    string     `json:"admin,omitempty"` // host:port of /metrics; another one after a restart
	PID      int        `json:"pid"`
	Restarts int        `json:"restarts"`
	Cause    string     `json:"cause,omitempty"`    // of the last death
	ReadyNS  int64      `json:"ready_ns"`           // from start to ready
	ReplicationRole ReplicationRole   `json:"replication_role,omitempty"` // of a database that has copies
	// Counts says that the node's own count of requests is a part of what clients sent.
	Counts bool `json:"counts,omitempty"`

	// Of a database that has copies, as it said when it was probed last: how far a
	// replica is behind, -1 where that is not known, and how many rows it found that
	// another primary had changed at the same time.
	LagNS     int64 `json:"lag_ns,omitempty"`
	Conflicts int64 `json:"conflicts,omitempty"`
}

// Usage is what hosts and nodes have used since they were started. Subtract
// two of them for a step.
type Usage struct {
	Hosts []HostUsage
	Nodes []NodeUsage
}

// HostUsage is one host's account with the kernel.
type HostUsage struct {
	Host             string
	CPU              float64 // budget in cores
	Isolated         bool
	CPUSeconds       float64
	ThrottledSeconds float64
	Periods          int64
	ThrottledPeriods int64
}

// NodeUsage is one node's account.
type NodeUsage struct {
	Node       string
	Host       string
	Role       sut.Role
	CPUSeconds float64
	RSSBytes   int64
}

// Failover is one change of the primary of a database with copies, and how long
// each step of it took.
type Failover struct {
	Epoch    int64  `json:"epoch"` // that it began
	From     string `json:"from"`
	To       string `json:"to"`
	UnixNS   int64  `json:"unix_ns"`   // when the old primary answered last
	DetectNS int64  `json:"detect_ns"` // from then until it was taken for dead
	FenceNS  int64  `json:"fence_ns"`
	// PromoteNS ends when the new primary takes writes, SwitchNS when the web hosts
	// send it theirs.
	PromoteNS int64 `json:"promote_ns"`
	SwitchNS  int64 `json:"switch_ns"`
	// ReplaceNS is from the last answer of the old primary until it was read as a
	// replica that has caught up; 0 = it is not yet.
	ReplaceNS int64 `json:"replace_ns"`
	// Position is that of the last change that the new primary held.
	Position int64 `json:"position"`
}

// Recovery is what failovers have cost, and what could be made good of it.
type Recovery struct {
	Failovers []Failover `json:"failovers"`
	Lost      []sut.Lost `json:"lost"` // by database that kept an old copy
	// Replayed is what became of it at the primary, by the database that had it;
	// empty unless that was asked for.
	Replayed map[string]sut.Replayed `json:"replayed,omitempty"`
}

// Scaled is a change of the number of hosts of a tier.
type Scaled struct {
	Tier   string `json:"tier"`
	Hosts  int    `json:"hosts"`
	TookNS int64  `json:"took_ns"`
	// Moved is how many keys of a cache, or objects of a blob store, have another host now,
	// and Held how many keys the cache had just before; nil = there is nothing that could
	// move, or it is not known.
	Moved *int64 `json:"moved,omitempty"`
	Held  *int64 `json:"held,omitempty"`
}

// Event is something that happened to a target: a kill, a death, a restart.
type Event struct {
	UnixNS int64  `json:"unix_ns"`
	Node   string `json:"node"`
	Text   string `json:"text"`
}
