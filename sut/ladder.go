package sut

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
)

// TableUnits is the number of units that the largest stage of the ladder needs.
// The unit is the same in every stage and in every selection of stages, so that
// rows can be compared: (cores - reserve) / TableUnits.
const TableUnits = 15

// minHostCPU is the smallest host, in cores: below a quota of 1 ms in 10 ms the
// kernel's own accounting dominates what is measured.
const minHostCPU = 0.1

// memoryPerUnit is the memory limit of a host of one unit.
const memoryPerUnit = 512 << 20

// UnitCPU returns the size of the unit in cores on a machine with that many
// cores, of which the load driver keeps reserve for itself.
func UnitCPU(cores int, reserve float64) float64 {
	return max((float64(cores)-reserve)/TableUnits, minHostCPU)
}

// Build returns the topology of a stage with those knobs; knobs that are not
// set get their defaults. It is a pure function.
func Build(stage Stage, knobs Knobs, unitCPU float64) (Topology, error) {
	if err := knobs.Validate(); err != nil {
		return Topology{}, err
	}
	b := builder{knobs: knobs.Complete(), unit: unitCPU}
	if err := b.settle(); err != nil {
		return Topology{}, err
	}
	if err := b.settleCache(stage); err != nil {
		return Topology{}, err
	}
	if err := b.settleCopies(stage); err != nil {
		return Topology{}, err
	}
	switch stage {
	case Single:
		// One machine carries both tiers, so it has one size: the larger one
		// asked for. It carries the bytes of photos, too.
		b.knobs["blob.hosts"], b.knobs["blob.copies"] = "0", "1"
		b.host("host-1", max(b.knobs.At("web.cpu", 0), b.knobs.Float("db.cpu")))
		b.database("host-1")
		b.blobs("host-1")
		b.web("web-1", "host-1")
		b.front("web-1")
	case DBSplit:
		b.host("web-1", b.knobs.At("web.cpu", 0))
		b.host("db-1", b.knobs.Float("db.cpu"))
		b.database("db-1")
		b.blobs("db-1")
		b.web("web-1", "web-1")
		b.front("web-1")
	case LB, Replicas, Caches:
		if err := b.balanced(); err != nil {
			return Topology{}, err
		}
	default:
		return Topology{}, fmt.Errorf("unknown stage %q: want one of %s", stage, stageNames())
	}
	b.topology.Stage, b.topology.UnitCPU, b.topology.Knobs = stage, unitCPU, b.knobs
	return b.topology, nil
}

// builder collects hosts and nodes of one topology.
type builder struct {
	knobs    Knobs
	unit     float64
	topology Topology
	// The nodes that every web node uses.
	databases, cached, stores []string
}

// settle resolves knobs that depend on each other, and refuses what cannot be
// together.
func (b *builder) settle() error {
	l4 := b.knobs["lb.layer"] == "l4"
	if b.knobs["lb.sticky"] == "auto" {
		b.knobs["lb.sticky"] = strconv.FormatBool(!l4)
	}
	engine := Engine(b.knobs["lb.engine"])
	hosts, copies := b.knobs.Int("blob.hosts"), b.knobs.Int("blob.copies")
	switch {
	case l4 && b.knobs.Bool("lb.sticky"):
		return errors.New("lb.sticky=true needs lb.layer=l7: a balancer of connections sees no cookies; lb.policy=ip_hash keeps an address on its host")
	case l4 && (b.knobs.Bool("web.split") || b.knobs["lb.routes"] != ""):
		return errors.New("web.split and lb.routes need lb.layer=l7: a balancer of connections sees no requests")
	case engine == HAProxy && b.knobs["lb.policy"] == "least_response_time":
		return errors.New("lb.policy=least_response_time needs lb.engine=balance: HAProxy has no such algorithm")
	case b.knobs.Bool("web.split") && b.knobs.Int("web.upload_hosts") >= b.knobs.Int("web.hosts"):
		return fmt.Errorf("web.split=true needs more web.hosts than web.upload_hosts, and has %s and %s", b.knobs["web.hosts"], b.knobs["web.upload_hosts"])
	case copies > max(hosts, 1):
		return fmt.Errorf("blob.copies=%d needs as many blob.hosts, and there are %d", copies, hosts)
	}
	return nil
}

// settleCache resolves the knobs of the cache tier, and refuses those that do not go
// together.
func (b *builder) settleCache(stage Stage) error {
	memcached := Engine(b.knobs["cache.engine"]) == Memcached
	switch {
	case stage.Before(Caches):
		b.knobs["cache.hosts"] = "0"
	case b.knobs.Duration("cache.ttl") == 0:
		return errors.New("cache.ttl=0s: want more; cache.feed_ttl alone may be 0s")
	case b.knobs["cache.write"] == "write_back" && b.knobs.Duration("cache.flush_interval") == 0:
		return errors.New("cache.flush_interval=0s: want more, or cache.write=write_through, which waits for nothing")
	case memcached && b.knobs["cache.evict"] != "lru":
		return fmt.Errorf("cache.evict=%s needs cache.engine=resp or redis: memcached has lru only", b.knobs["cache.evict"])
	case memcached && b.knobs.Float("cache.memory_mb") != math.Trunc(b.knobs.Float("cache.memory_mb")):
		return fmt.Errorf("cache.memory_mb=%s needs cache.engine=resp or redis: memcached takes whole numbers", b.knobs["cache.memory_mb"])
	case Engine(b.knobs["cache.engine"]) == Redis && b.knobs.Float("cache.memory_mb") < 2:
		return fmt.Errorf("cache.memory_mb=%s needs cache.engine=resp: redis takes 1 for its own structures, so give it 2 or more", b.knobs["cache.memory_mb"])
	}
	return nil
}

// settleCopies resolves the knobs of the copies of the database.
func (b *builder) settleCopies(stage Stage) error {
	if stage.Before(Replicas) {
		b.knobs["db.replicas"], b.knobs["db.topology"] = "0", "primary-replica"
		return nil
	}
	copies, replicas := b.knobs.Int("db.sync_copies"), b.knobs.Int("db.replicas")
	several, sync := b.knobs["db.topology"] != "primary-replica", b.knobs["db.sync"] == "sync"
	switch {
	case sync && copies > replicas:
		return fmt.Errorf("db.sync=sync with db.sync_copies=%d needs as many db.replicas, and there are %d", copies, replicas)
	case several && Engine(b.knobs["db.engine"]) != SQLite:
		return fmt.Errorf("db.topology=%s needs db.engine=sqlite: PostgreSQL 15 cannot tell changes of its own from those that it was sent", b.knobs["db.topology"])
	case sync && Engine(b.knobs["db.engine"]) != SQLite && b.knobs["db.sync_timeout"] != Knobs{}.Complete()["db.sync_timeout"]:
		return fmt.Errorf("db.sync_timeout=%s needs db.engine=sqlite: PostgreSQL waits for its replicas as long as a request may take, 5 s", b.knobs["db.sync_timeout"])
	case several && sync:
		return fmt.Errorf("db.topology=%s needs db.sync=async: what would have to hold a write are primaries themselves", b.knobs["db.topology"])
	case several && b.knobs.Duration("db.replica_lag") > 0:
		return fmt.Errorf("db.topology=%s has no replicas that could lag: db.replica_lag needs db.topology=primary-replica", b.knobs["db.topology"])
	case several && replicas == 0:
		return fmt.Errorf("db.topology=%s needs db.replicas of 1 or more: with 0 there is one database", b.knobs["db.topology"])
	}
	return nil
}

// balanced is several web hosts behind balancers.
func (b *builder) balanced() error {
	var balancers, uploads, reads []string
	for i := range b.knobs.Int("lb.hosts") {
		balancers = append(balancers, fmt.Sprintf("lb-%d", i+1))
		b.host(balancers[i], b.knobs.Float("lb.cpu"))
	}
	// The hosts for uploads are the first in the order of their names, so that a
	// change of web.hosts adds and removes hosts for reads.
	var webs []string
	for i := range b.knobs.Int("web.hosts") {
		name := fmt.Sprintf("web-%d", i+1)
		webs = append(webs, name)
		b.host(name, b.knobs.At("web.cpu", i))
		if b.knobs.Bool("web.split") && i < b.knobs.Int("web.upload_hosts") {
			uploads = append(uploads, name)
		} else {
			reads = append(reads, name)
		}
	}
	b.host("db-1", b.knobs.Float("db.cpu"))
	b.database("db-1")
	b.blobs("db-1")
	b.replicas()
	b.caches()
	for _, name := range reads {
		b.web(name, name)
	}
	for _, name := range uploads {
		// Sessions are in the memory of the reading hosts, which they are asked for.
		b.web(name, name, reads...)
	}
	routes, err := ParseRoutes(b.knobs["lb.routes"])
	if err != nil {
		panic("sut: lb.routes are not validated: " + err.Error())
	}
	for _, route := range routes {
		for _, name := range route.To {
			if !slices.Contains(webs, name) {
				return fmt.Errorf("lb.routes names %s, but there are only %s", name, strings.Join(webs, ", "))
			}
		}
	}
	if len(uploads) > 0 {
		for i := range b.topology.Nodes {
			switch n := &b.topology.Nodes[i]; {
			case slices.Contains(uploads, n.Name):
				n.Service = Uploads
			case n.Role == Web:
				n.Service = Reads
			}
		}
		routes = append(routes, Route{Method: "POST", Path: "/api/photos", To: uploads}, Route{To: reads})
	}
	for _, name := range balancers {
		b.node(Node{Name: name, Host: name, Role: Balance, Engine: Engine(b.knobs["lb.engine"]), Uses: webs, Routes: routes})
	}
	b.front(balancers...)
	if b.knobs["lb.layer"] == "l4" {
		b.topology.Counters = webs
	}
	return nil
}

func (b *builder) host(name string, units float64) {
	b.topology.Hosts = append(b.topology.Hosts, Host{
		Name: name, Units: units, CPU: max(units*b.unit, minHostCPU),
		MemoryBytes: int64(max(units, 1) * memoryPerUnit),
	})
}

func (b *builder) node(n Node) { b.topology.Nodes = append(b.topology.Nodes, n) }

// web puts a web node on a host. It uses the database, the stores of photo
// bytes, and the others that are named.
func (b *builder) web(name, host string, others ...string) {
	var number int
	if _, err := fmt.Sscanf(name, "web-%d", &number); err != nil {
		panic("sut: a web node without a number: " + name)
	}
	uses := slices.Concat(b.databases, b.cached, b.stores, others)
	b.node(Node{Name: name, Host: host, Role: Web, Engine: App, Uses: uses, Weight: b.knobs.At("web.weights", number-1)})
}

// front says which nodes clients talk to.
func (b *builder) front(names ...string) { b.topology.Frontends, b.topology.Counters = names, names }

// database puts the database, or its primary, on a host.
func (b *builder) database(host string) {
	b.databases = append(b.databases, "db-1")
	b.node(Node{Name: "db-1", Host: host, Role: DB, Engine: Engine(b.knobs["db.engine"]), Replicated: b.knobs.Int("db.replicas") > 0})
}

// replicas puts the replicas of the database, or the other primaries, on hosts of
// their own. They are as large as that of the primary, whose place they may have
// to take.
func (b *builder) replicas() {
	uses := []string{"db-1"}
	if b.knobs["db.topology"] != "primary-replica" {
		uses = nil
	}
	for i := range b.knobs.Int("db.replicas") {
		name := fmt.Sprintf("db-%d", i+2)
		b.databases = append(b.databases, name)
		b.host(name, b.knobs.Float("db.cpu"))
		b.node(Node{Name: name, Host: name, Role: DB, Engine: Engine(b.knobs["db.engine"]), Replicated: true, Uses: uses})
	}
}

// caches puts the cache tier on hosts of its own. It uses the database where it loads
// or writes records itself.
func (b *builder) caches() {
	var uses []string
	if b.knobs["cache.read"] == "read_through" || b.knobs["cache.write"] != "write_around" {
		uses = b.databases
	}
	for i := range b.knobs.Int("cache.hosts") {
		name := fmt.Sprintf("cache-%d", i+1)
		b.cached = append(b.cached, name)
		b.host(name, b.knobs.Float("cache.cpu"))
		// A Go heap is collected when it has doubled, and allocators round up: full, the
		// embedded node takes 2.6 times its budget, Redis 1.1 times.
		b.topology.Hosts[len(b.topology.Hosts)-1].MemoryBytes += int64(3 * b.knobs.Float("cache.memory_mb") * (1 << 20))
		b.node(Node{Name: name, Host: name, Role: Cache, Engine: Engine(b.knobs["cache.engine"]), Uses: uses})
	}
}

// blobs puts the stores of photo bytes on hosts of their own, or one on the
// host that is named when there are none.
func (b *builder) blobs(shared string) {
	hosts := b.knobs.Int("blob.hosts")
	for i := range max(hosts, 1) {
		name := fmt.Sprintf("blob-%d", i+1)
		b.stores = append(b.stores, name)
		if hosts > 0 {
			b.host(name, b.knobs.Float("blob.cpu"))
			shared = name
		}
		b.node(Node{Name: name, Host: shared, Role: Blob, Engine: Files})
	}
}

func stageNames() string {
	var names []string
	for _, s := range Stages() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}
