package ladder

import (
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// DB is the settings of the database hosts.
type DB struct {
	CPU            float64 // size of each host in units
	Engine         sut.Engine
	CapacityMB     int // size of the database of a host, in MB; 0 = limited by the disk only
	Replicas       int // hosts besides the first primary, at stage shards of each shard; 0 before stage replicas
	Topology       DBTopology
	SyncTimeout    time.Duration // how long a write waits for SyncCopies replicas
	ReadPreference ReadPreference
	ReplicaLag     time.Duration // artificial lag
	ProbeInterval  time.Duration // time between two probes of a database
	ProbeFailures  int           // consecutive failed probes after which a database counts as dead

	sync       string
	syncCopies int
}

// DBTopology is the way in which the databases replicate.
type DBTopology string

// With PrimaryReplica, one primary ships changes to replicas. With MultiPrimary, every
// database is a primary and ships changes to all others. With Ring, every database is a
// primary and ships changes to the next one in the ring.
const (
	PrimaryReplica DBTopology = "primary-replica"
	MultiPrimary   DBTopology = "multi-primary"
	Ring           DBTopology = "ring"
)

// ReadPreference selects the databases that serve reads.
type ReadPreference string

// With ReadReplica, reads go to replicas while one can be read, and else to the primary.
// With ReadPrimary, all reads go to the primary.
const (
	ReadReplica ReadPreference = "replica"
	ReadPrimary ReadPreference = "primary"
)

// DBOf returns the settings of the database hosts.
func DBOf(k sut.Knobs) DB { return settings[DB](k) }

// SyncCopies is the number of replicas that must hold a write before it is acknowledged.
func (s DB) SyncCopies() int {
	if s.sync != "sync" {
		return 0
	}
	return s.syncCopies
}

const defaultSyncTimeout = 2 // seconds

func (s *DB) knobs() []Knob {
	return []Knob{
		number("db.cpu", &s.CPU, 1, 0.5, 32, "size of each database host in units"),
		engine(sut.DB, &s.Engine, dbEngines(), "implementation of the database"),
		integer("db.capacity_mb", &s.CapacityMB, 0, 0, 1_000_000, "size of the database of a host in MB; when it is full, "+
			"writes that need more space get 507, and reads go on; 0 = limited by the disk only").on(sut.SQLite),
		integer("db.replicas", &s.Replicas, 2, 0, 8, "database hosts besides the first primary, from stage replicas on; "+
			"at stage shards, shard.replicas counts instead"),
		choice("db.topology", &s.Topology, PrimaryReplica, "how the databases replicate: one primary ships changes to "+
			"replicas; or every database is a primary and ships changes to all others (multi-primary), "+
			"or to the next one (ring), and the last writer of a row wins", MultiPrimary, Ring).on(sut.SQLite),
		choice("db.sync", &s.sync, "async",
			"when a write is acknowledged: async = when the primary holds it; sync = when db.sync_copies replicas hold it, too",
			"sync"),
		integer("db.sync_copies", &s.syncCopies, 1, 1, 8,
			"with db.sync=sync: number of replicas that must hold a write before it is acknowledged"),
		seconds("db.sync_timeout", &s.SyncTimeout, defaultSyncTimeout, 0.1, 2.5, "with db.sync=sync: seconds that a write "+
			"waits for its replicas; then the client gets an error, but the write may have taken effect. "+
			"PostgreSQL waits until the request times out, 5 s").on(sut.SQLite),
		choice("db.read_preference", &s.ReadPreference, ReadReplica,
			"which databases serve reads; the primary does when no replica can be read", ReadPrimary),
		duration("db.replica_lag", &s.ReplicaLag, 0, 10*time.Second,
			"artificial lag: a replica applies each change this long after its commit"),
		seconds("db.probe_interval", &s.ProbeInterval, 0.2, 0.05, 60,
			"seconds between two probes of a database, which detect that it is dead"),
		integer("db.probe_failures", &s.ProbeFailures, 3, 1, 100,
			"consecutive failed probes after which a database counts as dead, and a replica replaces a dead primary"),
	}
}

func dbEngines() []EngineInfo {
	return []EngineInfo{{Name: sut.SQLite}, {Name: sut.Postgres, Native: true}}
}

func dbTier() Tier {
	return Tier{
		Role: sut.DB, From: sut.Single, Engines: dbEngines(), Knobs: slices.Concat(new(DB).knobs(), new(Shard).knobs()),
		Scaling: []Scaling{{Name: "replica", Knob: "db.replicas", Besides: 1, refuse: fixedReplicas}, shardScaling()},
		Figures: append([]Figure{
			{
				Name: "database_reads", Metric: `stagebench_store_operations_total{kind="read"}`,
				From: []sut.Role{sut.Web, sut.Cache}, Kind: Counter, Doc: "read round trips to the databases",
			},
			{
				Name: "database_writes", Metric: `stagebench_store_operations_total{kind="write"}`,
				From: []sut.Role{sut.Web, sut.Cache}, Kind: Counter, Doc: "write round trips to the databases",
			},
			{
				Name: "shard_requests_one", Metric: `stagebench_store_requests_total{shards="one"}`,
				From: []sut.Role{sut.Web, sut.Cache}, Kind: Counter, Doc: "requests for the records of one shard",
			},
			{
				Name: "shard_requests_many", Metric: `stagebench_store_requests_total{shards="many"}`,
				From: []sut.Role{sut.Web, sut.Cache}, Kind: Counter, Title: "many\nshards",
				Doc: "many shards: requests for records that asked all shards, such as feeds",
			},
			{
				Name: "shard_busiest_percent", Metric: "stagebench_store_shard_operations_total",
				From: []sut.Role{sut.Web, sut.Cache}, Kind: Busiest, Title: "busiest\nshard %",
				Doc: "busiest shard: operations on its records alone, in percent of the mean of all shards",
			},
		}, feedFigures()...),
		check: checkDB, place: placeDB,
	}
}

// fixedReplicas refuses to scale databases that have no replication log or no replicas.
func fixedReplicas(t sut.Topology) error {
	if err := perShard(t); err != nil {
		return err
	}
	switch s := DBOf(t.Knobs); {
	case s.Replicas == 0:
		return errors.New("the database was started without replicas, so it keeps no replication log\n" +
			"bring the system up at stage replicas or later, with db.replicas=1 or more")
	case s.Topology != PrimaryReplica:
		return fmt.Errorf("with db.topology=%s every database is a primary, and only replicas can be added or removed\n"+
			"bring the system up with db.topology=primary-replica", s.Topology)
	}
	return nil
}

func checkDB(stage sut.Stage, k sut.Knobs) error {
	if err := checkShard(stage, k); err != nil {
		return err
	}
	if s := DBOf(k); s.CapacityMB > 0 && s.Engine != sut.SQLite {
		return fmt.Errorf("db.capacity_mb=%d needs db.engine=sqlite: PostgreSQL has no such limit", s.CapacityMB)
	}
	if before(stage, sut.Replicas) {
		k["db.replicas"], k["db.topology"] = "0", string(PrimaryReplica)
		return nil
	}
	s := DBOf(k)
	multiPrimary, sync := s.Topology != PrimaryReplica, s.SyncCopies() > 0
	replicas := "db.replicas"
	if !before(stage, sut.Sharded) {
		replicas = "shard.replicas"
	}
	switch {
	case s.SyncCopies() > s.Replicas:
		return fmt.Errorf("db.sync=sync with db.sync_copies=%d needs %s of at least %d, not %d",
			s.SyncCopies(), replicas, s.SyncCopies(), s.Replicas)
	case multiPrimary && s.Engine != sut.SQLite:
		return fmt.Errorf("db.topology=%s needs db.engine=sqlite: "+
			"PostgreSQL 15 would send a change back to the database that it came from", s.Topology)
	case sync && s.Engine != sut.SQLite && s.SyncTimeout != defaultSyncTimeout*time.Second:
		return fmt.Errorf("db.sync_timeout=%s needs db.engine=sqlite: "+
			"PostgreSQL waits for its replicas until the request times out, 5 s", k["db.sync_timeout"])
	case multiPrimary && sync:
		return fmt.Errorf("db.topology=%s needs db.sync=async: there are no replicas that could hold a write", s.Topology)
	case multiPrimary && s.ReplicaLag > 0:
		return fmt.Errorf("db.topology=%s has no replicas that could lag: db.replica_lag needs db.topology=primary-replica",
			s.Topology)
	case multiPrimary && s.Replicas == 0:
		return fmt.Errorf("db.topology=%s needs db.replicas=1 or more: with 0 there is only one database", s.Topology)
	}
	return nil
}

// placeDB places the primary and its replicas, or all primaries, or all shards. All hosts have the same
// size, because a failover can make any replica the primary.
func placeDB(p *plan) error {
	if !before(p.stage, sut.Sharded) {
		placeShards(p)
		return nil
	}
	s := DBOf(p.knobs)
	for i := range s.Replicas + 1 {
		name := numbered(p.role, i)
		n := sut.Node{Name: name, Host: p.host(name, s.CPU), Engine: s.Engine, Replicated: s.Replicas > 0}
		if i > 0 && s.Topology == PrimaryReplica {
			n.Uses = []string{numbered(p.role, 0)}
		}
		p.node(n)
	}
	return nil
}
