package ladder

import (
	"errors"
	"fmt"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// DB is the settings of the database hosts.
type DB struct {
	CPU            float64 // size of each host in units
	Engine         sut.Engine
	Replicas       int // hosts besides the primary; 0 before stage replicas
	Topology       DBTopology
	SyncTimeout    time.Duration // how long a write waits for SyncCopies
	ReadPreference ReadPreference
	ReplicaLag     time.Duration // artificial
	ProbeInterval  time.Duration // between two probes of a database
	ProbeFailures  int           // in a row, after which it is taken for dead

	sync       string
	syncCopies int
}

// DBTopology is what the copies of the database are.
type DBTopology string

// One primary and replicas of it; or several primaries, each of which ships to all
// others, or in a ring to the next one.
const (
	PrimaryReplica DBTopology = "primary-replica"
	MultiPrimary   DBTopology = "multi-primary"
	Ring           DBTopology = "ring"
)

// ReadPreference is where reads go.
type ReadPreference string

// Reads go to the replicas, as long as one can be read, or to the primary.
const (
	ReadReplica ReadPreference = "replica"
	ReadPrimary ReadPreference = "primary"
)

// DBOf returns the settings of the database hosts.
func DBOf(k sut.Knobs) DB { return settings[DB](k) }

// SyncCopies is how many replicas must hold a write before it is acknowledged.
func (s DB) SyncCopies() int {
	if s.sync != "sync" {
		return 0
	}
	return s.syncCopies
}

// defaultSyncTimeout is in seconds.
const defaultSyncTimeout = 2

func (s *DB) knobs() []Knob {
	return []Knob{
		number("db.cpu", &s.CPU, 1, 0.5, 32, "size of the database host in units"),
		engine(sut.DB, &s.Engine, dbEngines(), "what realises the database"),
		integer("db.replicas", &s.Replicas, 2, 0, 8, "database hosts besides the primary, from stage replicas on"),
		choice("db.topology", &s.Topology, PrimaryReplica, "what the copies are: one primary and replicas of it; "+
			"or several primaries, each of which ships to all others, or in a ring to the next one: "+
			"the last writer of a row wins", MultiPrimary, Ring).on(sut.SQLite),
		choice("db.sync", &s.sync, "async",
			"what a write waits for: async = the primary, sync = db.sync_copies replicas, too", "sync"),
		integer("db.sync_copies", &s.syncCopies, 1, 1, 8,
			"with db.sync=sync: how many replicas must hold a write before it is acknowledged"),
		seconds("db.sync_timeout", &s.SyncTimeout, defaultSyncTimeout, 0.1, 2.5, "with db.sync=sync: seconds after which "+
			"a write that too few replicas hold is answered with an error; it may have taken effect. "+
			"PostgreSQL waits as long as a request may take, 5 s").on(sut.SQLite),
		choice("db.read_preference", &s.ReadPreference, ReadReplica,
			"where reads go; to the primary when no replica can be read", ReadPrimary),
		duration("db.replica_lag", &s.ReplicaLag, 0, 10*time.Second,
			"artificial lag: a replica applies each change so long after its commit"),
		seconds("db.probe_interval", &s.ProbeInterval, 0.2, 0.05, 60,
			"seconds between two probes of a database, by which its death is detected"),
		integer("db.probe_failures", &s.ProbeFailures, 3, 1, 100,
			"failed probes in a row after which a database is taken for dead, and a dead primary replaced by a replica"),
	}
}

func dbEngines() []EngineInfo {
	return []EngineInfo{{Name: sut.SQLite}, {Name: sut.Postgres, Native: true}}
}

func dbTier() Tier {
	return Tier{
		Role: sut.DB, From: sut.Single, Engines: dbEngines(), Knobs: new(DB).knobs(),
		Scaling: &Scaling{Name: "replica", Knob: "db.replicas", refuse: fixedReplicas},
		Figures: []Figure{
			{
				Name: "database_reads", Metric: `stagebench_store_operations_total{kind="read"}`,
				From: []sut.Role{sut.Web, sut.Cache}, Kind: Counter, Doc: "round trips to the databases to read",
			},
			{
				Name: "database_writes", Metric: `stagebench_store_operations_total{kind="write"}`,
				From: []sut.Role{sut.Web, sut.Cache}, Kind: Counter, Doc: "round trips to the databases to write",
			},
		},
		check: checkDB, place: placeDB,
	}
}

// fixedReplicas says why the number of copies cannot change.
func fixedReplicas(t sut.Topology) error {
	switch s := DBOf(t.Knobs); {
	case s.Replicas == 0:
		return errors.New("a database without replicas keeps no log of changes for one\n" +
			"bring the system up at stage replicas or later, with db.replicas of 1 or more")
	case s.Topology != PrimaryReplica:
		return fmt.Errorf("with db.topology=%s every database is a primary: only replicas can come and go\n"+
			"bring the system up with db.topology=primary-replica", s.Topology)
	}
	return nil
}

func checkDB(stage sut.Stage, k sut.Knobs) error {
	if before(stage, sut.Replicas) {
		k["db.replicas"], k["db.topology"] = "0", string(PrimaryReplica)
		return nil
	}
	s := DBOf(k)
	several, sync := s.Topology != PrimaryReplica, s.SyncCopies() > 0
	switch {
	case s.SyncCopies() > s.Replicas:
		return fmt.Errorf("db.sync=sync with db.sync_copies=%d needs as many db.replicas, and there are %d",
			s.SyncCopies(), s.Replicas)
	case several && s.Engine != sut.SQLite:
		return fmt.Errorf("db.topology=%s needs db.engine=sqlite: "+
			"PostgreSQL 15 cannot tell changes of its own from those that it was sent", s.Topology)
	case sync && s.Engine != sut.SQLite && s.SyncTimeout != defaultSyncTimeout*time.Second:
		return fmt.Errorf("db.sync_timeout=%s needs db.engine=sqlite: "+
			"PostgreSQL waits for its replicas as long as a request may take, 5 s", k["db.sync_timeout"])
	case several && sync:
		return fmt.Errorf("db.topology=%s needs db.sync=async: what would have to hold a write are primaries themselves",
			s.Topology)
	case several && s.ReplicaLag > 0:
		return fmt.Errorf("db.topology=%s has no replicas that could lag: db.replica_lag needs db.topology=primary-replica",
			s.Topology)
	case several && s.Replicas == 0:
		return fmt.Errorf("db.topology=%s needs db.replicas of 1 or more: with 0 there is one database", s.Topology)
	}
	return nil
}

// placeDB places the primary and its replicas, or several primaries. All are of one size,
// as a replica may have to take the primary's place.
func placeDB(p *plan) error {
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
