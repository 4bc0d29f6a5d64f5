package sut

import "strconv"

// NodeConfig is what a node is told at birth: one JSON document on its
// standard input. Unknown fields are errors.
//
// The contract of a node (sut/node keeps it, targets/local relies on it):
//   - it reads exactly one NodeConfig from stdin and leaves stdin open;
//   - it binds Listen, on Port, or on a free port when Port is 0;
//   - it prints one Ready as a JSON line on stdout once it serves;
//   - it logs JSON lines to stderr;
//   - it dies when stdin closes, so that no orphan can exist;
//   - on SIGTERM it drains and exits 0 within DrainSeconds.
type NodeConfig struct {
	Node   string `json:"node"`
	Host   string `json:"host"`
	Role   Role   `json:"role"`
	Engine Engine `json:"engine"`

	Listen string `json:"listen"` // IP address to bind
	Port   int    `json:"port"`   // 0 = any free port; a restarted node gets its old one
	Dir    string `json:"dir"`    // private directory; for db and blob it already holds the copied template
	Procs  int    `json:"procs"`  // GOMAXPROCS, or the like of a native server

	// IDHost is the host number in the ids that a web node makes, 1 to MaxIDHost.
	// It is leased to one process. Whoever starts nodes gives numbers in turns, and
	// leaves out those that other web nodes have, so that a number comes back after
	// hundreds of starts. By then the clock has passed all ids that were made with it,
	// also those of a process that died while it was ahead of the clock.
	IDHost int `json:"id_host,omitempty"`

	DrainSeconds float64      `json:"drain_seconds"`
	Wiring       Wiring       `json:"wiring"`                // its neighbours, to begin with
	Service      Service      `json:"service,omitempty"`     // of a web node; empty = everything
	Replication  *Replication `json:"replication,omitempty"` // of a database; nil = it has no copies
	Knobs        Knobs        `json:"knobs"`
	Data         Data         `json:"data"` // the seeded data set that the system holds
}

// MaxIDHost is the highest host number; 0 is that of seeded records.
const MaxIDHost = 255

// RequestIDHeader is the header that carries a request's id through all tiers
// and their logs. The first tier that meets a request without one gives it one:
// 32 hexadecimal digits. One that a client sends is kept when it is made of 1 to
// 64 letters, digits, '-', '_' and '.'.
const RequestIDHeader = "X-Request-Id"

// Ready is what a node prints when it serves.
type Ready struct {
	Node    string `json:"node"`
	Address string `json:"address"`           // host:port of its protocol: HTTP for web, lb and blob, PostgreSQL for db
	Admin   string `json:"admin"`             // host:port that answers /metrics and /healthz over HTTP; may equal Address
	Version string `json:"version,omitempty"` // of the engine, as it says it
	PIDs    []int  `json:"pids,omitempty"`    // processes of the native server, besides the node's own
}

// Data identifies a seeded data set: the same Data gives the same rows and the
// same bytes everywhere.
type Data struct {
	Size string `json:"size"` // small, medium, large
	Seed uint64 `json:"seed"`
}

// DataCounts is how much a data set holds. Ids of seeded users are 1..Users;
// those of photos follow from their indexes, which are 1..Photos.
type DataCounts struct {
	Users    int `json:"users"`
	Photos   int `json:"photos"`
	Comments int `json:"comments"`
	Follows  int `json:"follows"` // target; the power law gives a few less after duplicates
	Images   int `json:"images"`  // distinct JPEGs in the pool that seeded photos share
}

// DataSizes lists the sizes from small to large.
func DataSizes() []string { return []string{"small", "medium", "large"} }

// Counts returns what a data set of this size holds; ok is false for an
// unknown size.
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

// SeedPassword is the password that all seeded users share. The data is
// synthetic; nothing is protected by it.
const SeedPassword = "stagebench"

// SeedLogin is the login name of the seeded user with that id.
func SeedLogin(id int) string { return "user-" + strconv.Itoa(id) }
