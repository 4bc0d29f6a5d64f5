// Package sut is the vocabulary of the system under test: stages, roles,
// engines, hosts, nodes, knobs and the topology that they form.
//
// It is pure data and pure functions: it starts nothing, opens nothing and
// reads no clock. Package ladder turns a stage and its knobs into a Topology;
// targets/local turns a Topology into processes; sut/node turns one NodeConfig
// into a running node.
//
// CPU is counted in cores, memory in bytes. All values may be shared between
// goroutines as long as nobody writes to them.
package sut

// Stage is one rung of the ladder.
type Stage string

// The stages that are built today, in the order of the ladder.
const (
	Single    Stage = "single"
	DBSplit   Stage = "db-split"
	LB        Stage = "lb"
	Replicas  Stage = "replicas"
	Caches    Stage = "cache"
	CDN       Stage = "cdn"
	Stateless Stage = "stateless"
	Queued    Stage = "queue"
	Sharded   Stage = "shards"
)

// Role is the function of a node in the system.
type Role string

// The roles of nodes. A Seed node fills an empty database and an empty blob
// directory, which are then kept as a template, and exits.
const (
	Web     Role = "web"
	DB      Role = "db"
	Balance Role = "lb"
	Blob    Role = "blob"
	Cache   Role = "cache"
	Edge    Role = "edge"
	Session Role = "session" // sessions outside the web hosts
	Queue   Role = "queue"   // a broker: it stores jobs until workers have done them
	Worker  Role = "worker"  // does jobs
	WAN     Role = "wan"     // the network between users and the origin
	Seed    Role = "seed"
)

// Engine is the implementation of a role.
type Engine string

// The engines that are built today. Embedded engines live in this binary;
// native ones are servers that must be installed.
const (
	SQLite     Engine = "sqlite"      // db, embedded
	Postgres   Engine = "postgres"    // db, native
	OwnBalance Engine = "balance"     // lb, embedded
	HAProxy    Engine = "haproxy"     // lb, native
	RESP       Engine = "resp"        // cache and session, embedded
	Redis      Engine = "redis"       // cache and session, native
	Memcached  Engine = "memcached"   // cache, native
	OwnEdge    Engine = "edge"        // edge, embedded
	Varnish    Engine = "varnish"     // edge, native
	Nginx      Engine = "nginx"       // edge, native
	JetStream  Engine = "jetstream"   // queue, embedded
	NATSServer Engine = "nats-server" // queue, native
	Relay      Engine = "relay"       // wan, embedded; there is no native one
	App        Engine = "app"         // web, embedded; there is no native one
	Processor  Engine = "processor"   // worker, embedded; there is no native one
	Files      Engine = "files"       // blob, embedded; there is no native one
)

// ErrorBody is the body of every HTTP error response of a node.
type ErrorBody struct {
	Error string `json:"error"`
	Hint  string `json:"hint,omitempty"` // what to do about it
}
