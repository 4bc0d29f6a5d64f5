package sut

import "errors"

// Wiring lists the neighbours of a node, in one document for every role. A node gets its
// first one in its NodeConfig. A running node takes a new one by PUT of its JSON to
// WiringPath at its admin address:
//   - 204: the wiring is in effect. New calls go only to nodes that are listed and not
//     draining. All calls to the other nodes have ended.
//   - 504: the wiring is in effect, but calls to the other nodes did not end within the
//     time in the header DrainHeader, in seconds. These calls go on.
//   - 409: the epoch is lower than the epoch of the node's wiring. Nothing changed.
//   - 400: the wiring is invalid. Nothing changed.
//
// The same document may be sent again. Errors are JSON: {"error": ..., "hint": ...}.
type Wiring struct {
	Epoch int64 `json:"epoch"` // grows with each change of the system; 0 = a node without a system
	// Uses is the nodes that this node calls, by role, in the order of the topology. The
	// primary is the first of the databases. Of a sharded database, the shards are listed
	// in the order of their numbers: the primary of each shard first, then its replicas
	// that serve reads. If the node's tier spreads keys over its nodes, the node's own role
	// lists all of them, this node included.
	Uses map[Role][]Peer `json:"uses,omitempty"`
	// Members names the other nodes of a replicated database, or of its shard. A database node replicates to these nodes
	// only, and only they can fence it.
	Members []string `json:"members,omitempty"`
	// Routes are the routes of a balancer; empty = every host gets every request.
	Routes []Route `json:"routes,omitempty"`
	// Unsticky makes users of a sticky balancer not stay on a host any more.
	Unsticky bool `json:"unsticky,omitempty"`
	// Sessions tells a web node that sessions move out of the memory of web nodes; nil = they are where its
	// configuration says.
	Sessions *SessionMove `json:"sessions,omitempty"`
	// Rebalancing is true while keys move between the nodes of the node's tier. A node must
	// then not hold back a write that the next owner of its key needs.
	Rebalancing bool `json:"moving,omitempty"`
}

// Peer is a node that another one calls.
type Peer struct {
	Node    string  `json:"node"`
	Address string  `json:"address"`          // host:port
	Shard   int     `json:"shard,omitempty"`  // number of the shard of a database, from 1; 0 = not sharded
	Weight  float64 `json:"weight,omitempty"` // its share of requests under weighted_round_robin; 0 = 1
	// Draining is true for a node that will be removed. It gets no new requests, except
	// that a draining blob node is still read for objects that no other node has.
	Draining bool `json:"draining,omitempty"`
}

// SessionMove is a move of sessions from the memory of the web nodes to a store that all of them share. It has three
// steps, and each of them is complete at all web nodes before the next one begins:
//   - Copy is false: a node also finds sessions in the store. New ones are still in its memory.
//   - Copy is true: new sessions are in the store, and the node copies those of its memory. The wiring is in effect
//     when it has copied all.
//   - Owners is empty: all sessions are in the store, and the node forgets its own.
type SessionMove struct {
	Store string `json:"store"` // value of the knob session.store
	Copy  bool   `json:"copy,omitempty"`
	// Owners are the web nodes that may have sessions in their memory which the store does not have, this node included.
	Owners []Peer `json:"owners,omitempty"`
}

// Active returns the peers of a role that are not draining, in order.
func (w Wiring) Active(role Role) []Peer {
	var active []Peer
	for _, p := range w.Uses[role] {
		if !p.Draining {
			active = append(active, p)
		}
	}
	return active
}

// ErrWiring means that a component rejected a wiring. Nothing changed.
var ErrWiring = errors.New("wiring")

// The admin interface for wirings.
const (
	WiringPath  = "/wiring"
	DrainHeader = "X-Drain-Seconds"
)
