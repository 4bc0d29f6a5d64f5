package sut

import "errors"

// Wiring is what a node is told about its neighbours: one document for every role.
// A node gets its first one with its configuration. A running node takes a new one by
// PUT of its JSON to WiringPath at its admin address:
//   - 204: the node acts by it. Nothing that begins from now on goes to a node that is
//     not listed or is draining, and what was under way there has ended.
//   - 504: the same, but something under way has not ended within the time that the
//     header DrainHeader gives, in seconds. It goes on.
//   - 409: the epoch is lower than that of a document that the node has. Nothing changed.
//   - 400: the document is wrong. Nothing changed.
//
// The same document may be sent again. Errors are JSON: {"error": ..., "hint": ...}.
type Wiring struct {
	Epoch int64 `json:"epoch"` // grows with each change of the system; 0 = a node that is alone
	// Uses is the nodes that the node calls, by role, in the order of the topology. Of
	// databases the primary is first. Under its own role a node finds all members of its
	// tier, itself included, where the tier shares its keys among them.
	Uses map[Role][]Peer `json:"uses,omitempty"`
	// Routes says what a balancer sends where; none = everything anywhere.
	Routes []Route `json:"routes,omitempty"`
	// Moving says that keys change their owner within the node's tier until the next
	// document: a node must keep nothing to itself that another one needs to know.
	Moving bool `json:"moving,omitempty"`
}

// Peer is a node that another one calls.
type Peer struct {
	Node    string  `json:"node"`
	Address string  `json:"address"`          // host:port
	Weight  float64 `json:"weight,omitempty"` // its share of requests under weighted_round_robin; 0 = 1
	// Draining is set for a node that is about to leave: it gets nothing new. A store of
	// photo bytes may still be asked for what no other has.
	Draining bool `json:"draining,omitempty"`
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

// ErrWiring says that a component refuses what a wiring tells it, and that nothing has
// changed.
var ErrWiring = errors.New("wiring")

// The admin interface for wirings.
const (
	WiringPath  = "/wiring"
	DrainHeader = "X-Drain-Seconds"
)
