// Package sut is the vocabulary of the system under test: stages, roles,
// engines, hosts, nodes, knobs and the topology that they form.
//
// It is pure data and pure functions: it starts nothing, opens nothing and
// reads no clock. The ladder (Build) turns a stage and its knobs into a
// Topology; targets/local turns a Topology into processes; sut/node turns one
// NodeConfig into a running node.
//
// CPU is counted in cores, memory in bytes. All values may be shared between
// goroutines as long as nobody writes to them.
package sut

import "slices"

// Stage is one rung of the ladder.
type Stage string

// The stages that are built today, in the order of the ladder.
const (
	Single   Stage = "single"
	DBSplit  Stage = "db-split"
	LB       Stage = "lb"
	Replicas Stage = "replicas"
	Caches   Stage = "cache"
)

// Stages lists every stage in the order of the ladder.
func Stages() []Stage { return []Stage{Single, DBSplit, LB, Replicas, Caches} }

// Before reports whether a stage comes before another one on the ladder.
func (s Stage) Before(other Stage) bool {
	return slices.Index(Stages(), s) < slices.Index(Stages(), other)
}

// Doc says in one line what the stage adds to the one below it.
func (s Stage) Doc() string {
	switch s {
	case Single:
		return "everything on one host: web and database"
	case DBSplit:
		return "the database moves to its own host"
	case LB:
		return "load balancer, several web hosts on private addresses"
	case Replicas:
		return "database replicas take the reads, and one of them the place of a dead primary"
	case Caches:
		return "cache tier in front of the database"
	}
	return ""
}

// Role is what a node does in the system.
type Role string

// The roles of nodes. Seed is a one-shot node that fills an empty database and
// an empty blob directory, so that the result can be kept as a template.
const (
	Web     Role = "web"
	DB      Role = "db"
	Balance Role = "lb"
	Blob    Role = "blob"
	Cache   Role = "cache"
	Seed    Role = "seed"
)

// Roles lists the roles that a topology may have, in the order of a request's way.
func Roles() []Role { return []Role{Balance, Web, Cache, DB, Blob} }

// Engine is what realises a role.
type Engine string

// The engines that are built today. Embedded engines live in this binary;
// native ones are servers that must be installed.
const (
	SQLite     Engine = "sqlite"    // db, embedded
	Postgres   Engine = "postgres"  // db, native
	OwnBalance Engine = "balance"   // lb, embedded
	HAProxy    Engine = "haproxy"   // lb, native
	RESP       Engine = "resp"      // cache, embedded
	Redis      Engine = "redis"     // cache, native
	Memcached  Engine = "memcached" // cache, native
	App        Engine = "app"       // web: always ours
	Files      Engine = "files"     // blob: always ours
)

// Native reports whether the engine is a server that must be installed.
func (e Engine) Native() bool { return e == Postgres || e == HAProxy || e == Redis || e == Memcached }

// EnginesOf lists the engines of a role: the embedded one first, then the native one
// that is chosen where nobody names one.
func EnginesOf(r Role) []Engine {
	switch r {
	case DB:
		return []Engine{SQLite, Postgres}
	case Balance:
		return []Engine{OwnBalance, HAProxy}
	case Cache:
		return []Engine{RESP, Redis, Memcached}
	case Web:
		return []Engine{App}
	case Blob:
		return []Engine{Files}
	}
	return nil
}
