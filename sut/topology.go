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
	Units       float64 `json:"units"`        // size in units; a balancer has 2 by default
	CPU         float64 `json:"cpu"`          // cores: Units times the size of a unit
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

	// Replicated is true for a database of a replicated tier. The database that uses
	// no other is the first primary, of its shard if the database is sharded. A failover
	// may promote another one later. In a multi-primary topology no database uses another.
	Replicated bool `json:"replicated,omitempty"`

	Shard   int     `json:"shard,omitempty"`   // number of the shard of a database, from 1; 0 = not sharded
	Service Service `json:"service,omitempty"` // the service of a web node; empty = all services
	Weight  float64 `json:"weight,omitempty"`  // web nodes under weighted_round_robin; 0 = 1
	Routes  []Route `json:"routes,omitempty"`  // balancers only; empty = every host gets every request
}

// Service is a part of the web tier that can run on hosts of its own.
type Service string

// The services that web.split separates. The empty Service is both.
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
	Nodes     []Node   `json:"nodes"`     // in start order: a node comes after all nodes that it uses
	Frontends []string `json:"frontends"` // names of the nodes that clients talk to; any of them serves any request
	// Fallbacks names the nodes that clients talk to when no frontend accepts their connection; nil = none.
	Fallbacks []string `json:"fallbacks,omitempty"`
	// Counters names the nodes whose request counters add up to the requests that
	// clients sent. These are the frontends, or the web nodes behind layer 4
	// balancers, which see only connections.
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

// Knobs maps the names of settings to their values as text: "lb.policy" ->
// "least_conn". The Knobs of a Topology hold every knob with its effective value.
// Package ladder reads them as typed settings.
type Knobs map[string]string

// MultiPrimary reports whether more than one database takes writes of the same row. The
// shards of a database have a primary each, but no row in common.
func (t Topology) MultiPrimary() bool {
	primaries := map[int]int{} // by shard
	for _, n := range t.Nodes {
		if n.Replicated && len(n.Uses) == 0 {
			primaries[n.Shard]++
			if primaries[n.Shard] > 1 {
				return true
			}
		}
	}
	return false
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
