package sut

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
)

// Host is a unit of capacity and of failure: everything on it shares its
// budget and dies with it.
type Host struct {
	Name        string  `json:"name"`
	Units       float64 `json:"units"`        // size in units; a balancer has two
	CPU         float64 `json:"cpu"`          // cores, Units times the size of the unit
	MemoryBytes int64   `json:"memory_bytes"` // limit
	Region      string  `json:"region,omitempty"`
}

// Node is one process on a host.
type Node struct {
	Name   string   `json:"name"`
	Host   string   `json:"host"`
	Role   Role     `json:"role"`
	Engine Engine   `json:"engine"`
	Uses   []string `json:"uses,omitempty"` // names of the nodes that it calls; they start before it

	// Replicated is set for a database that has copies. The one that uses no other
	// is the primary to begin with; which one is later, a failover decides. With
	// several primaries none uses another.
	Replicated bool `json:"replicated,omitempty"`

	Service Service `json:"service,omitempty"` // what a web node offers; empty = everything
	Weight  float64 `json:"weight,omitempty"`  // of a web node under weighted_round_robin; 0 = 1
	Routes  []Route `json:"routes,omitempty"`  // of a balancer: what goes where; none = everything anywhere
}

// Service is a part of the web tier that can be placed on hosts of its own.
type Service string

// The services that web.split takes apart. The empty Service is both.
const (
	Reads   Service = "reads"   // everything but the upload of photos
	Uploads Service = "uploads" // the upload of photos, and nothing else
)

// Topology is the hosts, nodes and links of one configuration, declared.
type Topology struct {
	Stage     Stage    `json:"stage"`
	UnitCPU   float64  `json:"unit_cpu"` // cores per unit
	Knobs     Knobs    `json:"knobs"`    // effective values, defaults included
	Hosts     []Host   `json:"hosts"`
	Nodes     []Node   `json:"nodes"`     // in start order: a node comes after all that it uses
	Frontends []string `json:"frontends"` // names of the nodes that clients talk to, any of them
	// Counters names the nodes whose own counts of requests add up to what
	// clients sent: the frontends, or the web nodes where a balancer of layer 4
	// sees connections only.
	Counters []string `json:"counters"`
}

// Units is the sum of the sizes of all hosts.
func (t Topology) Units() float64 {
	var sum float64
	for _, h := range t.Hosts {
		sum += h.Units
	}
	return sum
}

// CPU is the sum of the budgets of all hosts, in cores.
func (t Topology) CPU() float64 {
	var sum float64
	for _, h := range t.Hosts {
		sum += h.CPU
	}
	return sum
}

// Knobs are settings of a topology by name, as text: "lb.policy" -> "least_conn".
// Those of a topology hold every knob with its effective value. Package ladder
// reads them as typed settings.
type Knobs map[string]string

// MultiPrimary reports whether each database takes writes.
func (t Topology) MultiPrimary() bool {
	primaries := 0
	for _, n := range t.Nodes {
		if n.Replicated && len(n.Uses) == 0 {
			primaries++
		}
	}
	return primaries > 1
}

// Host returns the host of that name.
func (t Topology) Host(name string) (Host, bool) {
	for _, h := range t.Hosts {
		if h.Name == name {
			return h, true
		}
	}
	return Host{}, false
}

// Node returns the node of that name.
func (t Topology) Node(name string) (Node, bool) {
	for _, n := range t.Nodes {
		if n.Name == name {
			return n, true
		}
	}
	return Node{}, false
}

// Digest identifies the topology: equal topologies have equal digests.
func (t Topology) Digest() string {
	text, err := json.Marshal(t)
	if err != nil {
		panic("sut: a topology is plain data: " + err.Error())
	}
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:8])
}
