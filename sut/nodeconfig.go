package sut

import (
	"fmt"
	"strconv"
)

// NodeConfig is the configuration with which a node starts: one JSON document on
// its standard input. Unknown fields are errors.
//
// The contract of a node (sut/node keeps it, targets/local relies on it):
//   - it reads exactly one NodeConfig from stdin and leaves stdin open;
//   - it binds the address Listen on Port, or on any free port when Port is 0;
//   - it prints one Ready as a JSON line on stdout once it serves;
//   - it logs JSON lines to stderr;
//   - it exits when stdin closes, so no process outlives its parent;
//   - on SIGTERM it drains and exits 0 within DrainSeconds.
type NodeConfig struct {
	Node   string `json:"node"`
	Host   string `json:"host"`
	Role   Role   `json:"role"`
	Engine Engine `json:"engine"`

	Listen string `json:"listen"` // IP address to bind
	Port   int    `json:"port"`   // 0 = any free port; a restarted node gets the port that it had
	Dir    string `json:"dir"`    // private directory; for db and blob it already holds the copied template
	Procs  int    `json:"procs"`  // GOMAXPROCS, or the equivalent setting of a native server
	// MemoryBytes is the node's part of the memory limit of its host; 0 = no limit.
	MemoryBytes int64 `json:"memory_bytes,omitempty"`

	// IDHost is the host number in the ids that a web node generates, 1 to MaxIDHost.
	// No two running web nodes have the same number. The starter assigns numbers in
	// rotation, so a number is reused only after hundreds of starts. An earlier reuse
	// could repeat ids of a crashed process whose ids were ahead of the clock.
	IDHost int `json:"id_host,omitempty"`

	// Secret is that of the system. The node demands it from whoever changes it, reads its figures, or asks for what only
	// other nodes may have, and shows it to the nodes that it calls.
	Secret Secret `json:"secret"`

	DrainSeconds float64 `json:"drain_seconds"`
	Wiring       Wiring  `json:"wiring"`            // its neighbours at the start
	Service      Service `json:"service,omitempty"` // web nodes only; empty = all services
	// Shard is the number of the shard whose rows the node holds or seeds, from 1; 0 = the
	// database is not sharded. Databases and seed nodes only.
	Shard       int          `json:"shard,omitempty"`
	Replication *Replication `json:"replication,omitempty"` // databases only; nil = no replication
	Knobs       Knobs        `json:"knobs"`
	Data        Data         `json:"data"` // the seeded data set that the system holds
}

// MaxIDHost is the highest host number. Seeded records have the host number 0.
const MaxIDHost = 255

// RequestIDHeader is the header that carries a request's id through all tiers
// and their logs. A client may send an id of 1 to 64 letters, digits, '-', '_'
// and '.'. Otherwise the first tier generates one: 32 hexadecimal digits.
const RequestIDHeader = "X-Request-Id"

// MaxHeaderBytes is http.Server.MaxHeaderBytes of all nodes. net/http adds 4 KiB, so headers
// above 8 KiB get 431, as with other web servers.
const MaxHeaderBytes = 4 << 10

// Ready is the document that a node prints when it serves.
type Ready struct {
	Node    string `json:"node"`
	Address string `json:"address"`           // host:port of its protocol: HTTP for web, lb and blob, PostgreSQL for db
	Admin   string `json:"admin"`             // host:port that answers /metrics and /healthz over HTTP; may equal Address
	Version string `json:"version,omitempty"` // the version that the engine reports
	PIDs    []int  `json:"pids,omitempty"`    // processes of the native server; the node's own process is not listed
}

// Data identifies a seeded data set: the same Data gives the same rows and the
// same bytes everywhere.
type Data struct {
	Size string `json:"size"` // small, medium, large
	Seed uint64 `json:"seed"`
}

// DataCounts is the number of records in a data set. Seeded users have the ids
// 1..Users. The ids of seeded photos are computed from their indexes, 1..Photos.
type DataCounts struct {
	Users    int `json:"users"`
	Photos   int `json:"photos"`
	Comments int `json:"comments"`
	Follows  int `json:"follows"` // upper bound: a few are duplicates and are dropped
	Images   int `json:"images"`  // distinct JPEGs in the pool that seeded photos share
}

// DataSizes lists the sizes from small to large.
func DataSizes() []string { return []string{"small", "medium", "large"} }

// Counts returns the number of records in a data set of this size; ok is false
// for an unknown size.
func (d Data) Counts() (c DataCounts, ok bool) {
	switch d.Size {
	case "small":
		return DataCounts{Users: 1_000, Photos: 3_000, Comments: 6_000, Follows: 20_000, Images: 64}, true
	case "medium":
		return DataCounts{Users: 10_000, Photos: 30_000, Comments: 60_000, Follows: 300_000, Images: 128}, true
	case "large":
		return DataCounts{Users: 50_000, Photos: 200_000, Comments: 400_000, Follows: 2_000_000, Images: 256}, true
	}
	return DataCounts{}, false
}

// String returns the size and the number of records, for people.
func (d Data) String() string {
	c, known := d.Counts()
	if !known {
		return d.Size
	}
	return fmt.Sprintf("%s (%d users, %d photos, %d comments, at most %d follows)",
		d.Size, c.Users, c.Photos, c.Comments, c.Follows)
}

// SeedPassword is the password that all seeded users share. The data is
// synthetic; nothing is protected by it.
const SeedPassword = "stagebench"

// SeedLogin is the login name of the seeded user with that id.
func SeedLogin(id int) string { return "user-" + strconv.Itoa(id) }

// The limits of the clients of a broker, in bytes. A job has no body, so messages are small.
const (
	BrokerPayload     = 16 << 10
	BrokerControlLine = 1 << 10
	BrokerPending     = 8 << 20 // that a client has not read
	BrokerAuthSeconds = 2
)

// The brokers of a system form a cluster of this name. They reach each other at this port; each has an address of its
// own.
const (
	BrokerCluster     = "stagebench"
	BrokerClusterPort = 6222
)
