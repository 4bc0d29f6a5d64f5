// Package targets defines the types that describe a running system under load.
//
// A target is either a topology that Stagebench started (targets/local) or an
// address that the user gave (targets/attach). The driver does not import this
// package: it gets addresses. Nothing here starts a process.
package targets

import (
	"fmt"

	"github.com/stagebench/stagebench/sut"
)

// State is the state of a node's process.
type State string

// The states of a node.
const (
	Starting State = "starting"
	Serving  State = "serving"
	Paused   State = "paused"
	Dead     State = "dead" // killed or crashed; the supervisor restarts it
	Stopped  State = "stopped"
)

// ReplicationRole is the role of one database node in replication.
type ReplicationRole string

// The replication roles.
const (
	Primary ReplicationRole = "primary" // takes the writes
	Replica ReplicationRole = "replica"
)

// InShard returns the name of the database of a shard that has the role: "primary-2".
func (r ReplicationRole) InShard(shard int) string { return fmt.Sprintf("%s-%d", r, shard) }

// Named reports whether a name means databases that have the role: the role itself, or the
// role in their shard. shard is 0 if the database is not sharded.
func (r ReplicationRole) Named(name string, shard int) bool {
	return r != "" && (name == string(r) || shard > 0 && name == r.InShard(shard))
}

// NodeStatus is one node of a target, as `stagebench status` shows it.
type NodeStatus struct {
	Node     string     `json:"node"`
	Host     string     `json:"host"`
	Role     sut.Role   `json:"role"`
	Engine   sut.Engine `json:"engine"`
	Version  string     `json:"version,omitempty"`
	State    State      `json:"state"`
	Address  string     `json:"address"`         // host:port
	Admin    string     `json:"admin,omitempty"` // host:port of /metrics; changes at each restart
	Secret   sut.Secret `json:"secret"`          // for requests at Admin; never show it
	PID      int        `json:"pid"`
	Restarts int        `json:"restarts"`
	Cause    string     `json:"cause,omitempty"` // of the last death
	ReadyNS  int64      `json:"ready_ns"`        // from start to ready
	// ReplicationRole is empty unless the database is replicated.
	ReplicationRole ReplicationRole `json:"replication_role,omitempty"`
	Shard           int             `json:"shard,omitempty"` // of a database, from 1; 0 = it is not sharded
	// CountsClientRequests is true if the node counts requests that come directly from clients.
	CountsClientRequests bool `json:"counts,omitempty"`

	// The last probe of a replicated database reported these. LagNS is the lag of a
	// replica, -1 = unknown. Discarded is what a multi-primary database discarded.
	LagNS int64 `json:"lag_ns,omitempty"`
	sut.Discarded
}

// Usage is what hosts and nodes have used since they started. The usage of a step
// is the difference of two readings.
type Usage struct {
	Hosts []HostUsage
	Nodes []NodeUsage
}

// HostUsage is what one host has used, as the kernel counts it.
type HostUsage struct {
	Host             string
	CPU              float64 // budget in cores
	Isolated         bool    // the kernel enforces the budget
	CPUSeconds       float64
	ThrottledSeconds float64
	Periods          int64
	ThrottledPeriods int64
}

// NodeUsage is what one node has used.
type NodeUsage struct {
	Node       string
	Host       string
	Role       sut.Role
	CPUSeconds float64
	// WaitSeconds is the time in which its threads were ready to run but had no CPU, summed over the threads.
	WaitSeconds float64
	RSSBytes    int64
}

// Failover is one change of the primary of a replicated database, with the duration
// of each step.
type Failover struct {
	Epoch    int64  `json:"epoch"`     // of the new primary
	From     string `json:"from"`      // old primary
	To       string `json:"to"`        // new primary
	UnixNS   int64  `json:"unix_ns"`   // when the old primary last answered a probe
	DetectNS int64  `json:"detect_ns"` // from that answer until the supervisor considered it dead
	FenceNS  int64  `json:"fence_ns"`
	// PromoteNS ends when the new primary accepts writes. SwitchNS ends when the web
	// nodes send their writes to it.
	PromoteNS int64 `json:"promote_ns"`
	SwitchNS  int64 `json:"switch_ns"`
	// ReplaceNS is the time from the last answer of the old primary until the same node
	// served reads as a replica; 0 = not yet.
	ReplaceNS int64 `json:"replace_ns"`
	// Position is the position of the last change that the new primary had.
	Position int64 `json:"position"`
}

// Recovery lists failovers, the acknowledged writes that the system lost, and the result of a replay.
type Recovery struct {
	Failovers []Failover `json:"failovers"`
	// Lost has each loss once, in order of collection. Losses that are not collected yet come last.
	Lost []sut.Lost `json:"lost"`
	// Discarded is what each node of a multi-primary database counts. It is empty for other databases.
	Discarded []Discarded `json:"discarded,omitempty"`
	// Replayed has the results of a replay, in order of epochs. It is nil unless a replay was requested, and empty if
	// there was nothing to replay.
	Replayed []Replayed `json:"replayed"`
}

// Discarded is what one node of a multi-primary database counts. Do not add the counts of nodes.
type Discarded struct {
	Node string `json:"node"`
	sut.Discarded
}

// Replayed is the result of replaying one loss at the primary.
type Replayed struct {
	Node  string `json:"node"` // that had the loss
	Epoch int64  `json:"epoch"`
	sut.Replayed
}

// Scaled is the result of changing the number of hosts of a tier.
type Scaled struct {
	Tier   string `json:"tier"`
	Hosts  int    `json:"hosts"`
	TookNS int64  `json:"took_ns"`
	// Moved counts cache keys, blob objects or rows that now belong to another host or shard.
	// Held counts the cache keys or rows just before the change. nil = unknown, or there are none.
	Moved *int64 `json:"moved,omitempty"`
	Held  *int64 `json:"held,omitempty"`
	// Resharded is what moved between shards; nil = no shard was added or removed.
	Resharded *Resharded `json:"resharded,omitempty"`
}

// Resharded is the result of moving buckets of rows between shards.
type Resharded struct {
	Buckets int   `json:"buckets"` // that have moved
	Least   int   `json:"least"`   // that have to move at least if all shards are to have the same number
	Rows    int64 `json:"rows"`
	// PauseP50NS and PauseMaxNS are the median and the longest time for which the writes of a bucket waited.
	PauseP50NS int64 `json:"pause_p50_ns"`
	PauseMaxNS int64 `json:"pause_max_ns"`
}

// Changed is the result of changing a knob while the system serves.
type Changed struct {
	Knob   string `json:"knob"`
	Value  string `json:"value"`
	TookNS int64  `json:"took_ns"`
	// Moved counts the sessions that were moved; nil = unknown.
	Moved *int64 `json:"moved,omitempty"`
}

// Purged is the result of a purge at one edge.
type Purged struct {
	Node   string `json:"node"`
	Down   bool   `json:"down,omitempty"` // it was down, and starts without entries
	TookNS int64  `json:"took_ns"`
}

// Event is one thing that happened to a target, for example a kill, a death or a restart.
type Event struct {
	UnixNS int64  `json:"unix_ns"`
	Node   string `json:"node"`
	Text   string `json:"text"`
	// Supply is the number of web hosts after the event; nil = the event does not concern them.
	Supply *Supply `json:"supply,omitempty"`
	// Scaling is a decision of the autoscaler; nil = the event is another one.
	Scaling *Scaling `json:"scaling,omitempty"`
}

// Supply is the number of hosts of a tier.
type Supply struct {
	Serving int `json:"serving"` // hosts that get requests: they serve, take part and do not drain
	Hosts   int `json:"hosts"`   // all hosts, also those that start, drain or are dead
}

// Scaling is one decision of the autoscaler about the number of web hosts. From = To is a
// decision to change nothing.
type Scaling struct {
	From   int      `json:"from"`
	To     int      `json:"to"`
	Advice int      `json:"advice"`           // by the metric alone
	Metric *float64 `json:"metric,omitempty"` // mean per host: percent of the CPU budget, or requests in flight
	Limit  string   `json:"limit,omitempty"`  // what else decided, see targets/autoscale; "" = the metric alone
	Reason string   `json:"reason"`
}
