package sut

import (
	"fmt"
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
	switch stage {
	case Single:
		// One machine carries both tiers, so it has one size: the larger one
		// asked for.
		b.host("host-1", max(b.knobs.Float("web.cpu"), b.knobs.Float("db.cpu")))
		b.database("host-1")
		b.node("web-1", "host-1", Web, App, "db-1", "blob-1")
		b.topology.Frontend = "web-1"
	case DBSplit:
		b.host("web-1", b.knobs.Float("web.cpu"))
		b.host("db-1", b.knobs.Float("db.cpu"))
		b.database("db-1")
		b.node("web-1", "web-1", Web, App, "db-1", "blob-1")
		b.topology.Frontend = "web-1"
	case LB:
		b.host("lb-1", b.knobs.Float("lb.cpu"))
		var webs []string
		for i := range b.knobs.Int("web.hosts") {
			webs = append(webs, fmt.Sprintf("web-%d", i+1))
			b.host(webs[i], b.knobs.Float("web.cpu"))
		}
		b.host("db-1", b.knobs.Float("db.cpu"))
		b.database("db-1")
		for _, web := range webs {
			b.node(web, web, Web, App, "db-1", "blob-1")
		}
		b.node("lb-1", "lb-1", Balance, Engine(b.knobs["lb.engine"]), webs...)
		b.topology.Frontend = "lb-1"
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
}

func (b *builder) host(name string, units float64) {
	b.topology.Hosts = append(b.topology.Hosts, Host{
		Name: name, Units: units, CPU: max(units*b.unit, minHostCPU),
		MemoryBytes: int64(max(units, 1) * memoryPerUnit),
	})
}

func (b *builder) node(name, host string, role Role, engine Engine, uses ...string) {
	b.topology.Nodes = append(b.topology.Nodes, Node{Name: name, Host: host, Role: role, Engine: engine, Uses: uses})
}

// database puts the database and the store of photo bytes on a host.
func (b *builder) database(host string) {
	b.node("db-1", host, DB, Engine(b.knobs["db.engine"]))
	b.node("blob-1", host, Blob, Files)
}

func stageNames() string {
	var names []string
	for _, s := range Stages() {
		names = append(names, string(s))
	}
	return strings.Join(names, ", ")
}
