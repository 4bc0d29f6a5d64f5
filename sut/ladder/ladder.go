// Package ladder turns a stage and its knobs into a topology. It is pure: it starts
// nothing, opens nothing and reads no clock.
//
// A Tier is one value per role, in a file of its own: the engines that realise it, its
// knobs, what it refuses, where its hosts and nodes are placed, which other tiers it
// calls, whether its hosts may come and go while it serves, and the figures that it
// reports. Whatever is listed, started, scaled, measured and shown follows from these
// values, so that a new tier is one file here and one line in Tiers.
//
// Knobs are text where people and files meet them, and typed settings for everybody
// else: CacheOf(knobs).Read is a ReadStrategy. The usual order of calls is ParseKnobs,
// Build, and then the settings of Topology.Knobs. All functions may be called
// concurrently; CPU is counted in cores, memory in bytes.
package ladder

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/stagebench/stagebench/sut"
)

// Rung is a stage with what it adds to the one below it.
type Rung struct {
	Stage sut.Stage
	Adds  string
}

// Rungs lists the stages in the order of the ladder.
func Rungs() []Rung {
	return []Rung{
		{sut.Single, "everything on one host: web and database"},
		{sut.DBSplit, "the database moves to its own host"},
		{sut.LB, "load balancer, several web hosts on private addresses"},
		{sut.Replicas, "database replicas take the reads, and one of them the place of a dead primary"},
		{sut.Caches, "cache tier in front of the database"},
	}
}

// Tiers lists the tiers in the order in which their hosts are shown.
func Tiers() []Tier {
	return []Tier{lbTier(), webTier(), dbTier(), blobTier(), cacheTier()}
}

// Tier is all hosts of one role, and what is particular to them.
type Tier struct {
	Role    sut.Role
	From    sut.Stage    // the first stage that has it
	Engines []EngineInfo // the embedded one first, then the one that --engines native chooses
	Knobs   []Knob
	Calls   func(sut.Knobs) []sut.Role // the roles that its nodes call, which start before it; nil = none
	Scaling *Scaling                   // nil = its hosts cannot come and go while it serves
	Figures []Figure

	// check completes knobs that depend on others, and refuses what cannot go together.
	check func(stage sut.Stage, knobs sut.Knobs) error
	// place adds hosts and nodes.
	place func(*plan) error
}

// EngineInfo is an engine that realises a role.
type EngineInfo struct {
	Name   sut.Engine
	Native bool // a server that must be installed; else it is in this binary
}

// Scaling says how the number of a tier's hosts changes while the system serves.
type Scaling struct {
	Name    string // what is scaled, as people name it: "web", "replica"
	Knob    string // the number of hosts
	Members bool   // its nodes share keys, so that keys move when hosts come or go
	Keys    string // what moves then, as people call it: "keys", "objects"
	// Moved and Held are the metrics of its nodes that count the keys that they have handed
	// over, and those that they hold; "" = nobody counts them.
	Moved, Held string
	Stores      bool // its nodes hold what no other tier has: none is stopped before it has handed that over
	// refuse says why a system cannot be scaled; nil = each that has the tier can.
	refuse func(sut.Topology) error
}

// Scale returns the topology with another number of hosts of the tier that is scaled by
// that name, and the tier. It refuses what a system cannot do while it serves.
func Scale(now sut.Topology, name string, hosts int) (sut.Topology, Tier, error) {
	var names []string
	for _, t := range Tiers() {
		switch {
		case t.Scaling == nil:
			continue
		case t.Scaling.Name != name:
			names = append(names, t.Scaling.Name)
			continue
		case before(now.Stage, t.From):
			return now, t, fmt.Errorf("stage %s has no %s hosts\n"+
				"bring up a later one: stagebench up --stage %s", now.Stage, name, t.From)
		case t.Scaling.refuse != nil:
			if err := t.Scaling.refuse(now); err != nil {
				return now, t, err
			}
		}
		knobs := maps.Clone(now.Knobs)
		knobs[t.Scaling.Knob] = strconv.Itoa(hosts)
		next, err := Build(now.Stage, knobs, now.UnitCPU)
		return next, t, err
	}
	return now, Tier{}, fmt.Errorf("%q cannot change its number of hosts while the system serves\n"+
		"want one of: %s", name, strings.Join(names, ", "))
}

// Figure is something that nodes count or hold, shown with each step.
type Figure struct {
	Name string // in summary.json and CSV, with the unit last: "cache_evictions"
	// Metric is the Prometheus metric at the admin addresses of the nodes that report it.
	// It is summed over its labels, unless it names one series: `x{kind="read"}`.
	Metric string
	From   []sut.Role // the roles whose nodes report it
	Kind   FigureKind
	Title  string // of its column in tables; "" = it has none
	Doc    string // one sentence for people
}

// Figures lists the figures of all tiers.
func Figures() []Figure {
	var all []Figure
	for _, t := range Tiers() {
		all = append(all, t.Figures...)
	}
	return all
}

// FigureKind says how a figure of a step is made of readings before and after it.
type FigureKind string

// The kinds of figures, each summed over the nodes that report it.
const (
	Counter FigureKind = "counter" // growth during the step
	Gauge   FigureKind = "gauge"   // value at its end
)

// Native reports whether an engine is a server that must be installed.
func Native(engine sut.Engine) bool {
	return slices.ContainsFunc(Tiers(), func(t Tier) bool {
		return slices.Contains(t.Engines, EngineInfo{engine, true})
	})
}

// Engines names the engine of each role of a topology whose engine can be chosen.
func Engines(t sut.Topology) map[sut.Role]sut.Engine {
	engines := map[sut.Role]sut.Engine{}
	for _, tier := range Tiers() {
		for _, n := range t.Nodes {
			if n.Role == tier.Role && len(tier.Engines) > 1 {
				engines[n.Role] = n.Engine
			}
		}
	}
	return engines
}

// TableUnits is the number of units that the largest stage of the ladder needs. The unit
// is the same in every stage and in every selection of stages, so that rows can be
// compared: (cores - reserve) / TableUnits.
const TableUnits = 15

// minHostCPU is the smallest host, in cores: below it the kernel's own accounting
// dominates what is measured.
const minHostCPU = 0.1

// memoryPerUnit is the memory limit of a host of one unit.
const memoryPerUnit = 512 << 20

// UnitCPU returns the size of the unit in cores on a machine with that many cores, of
// which the load driver keeps reserve for itself.
func UnitCPU(cores int, reserve float64) float64 {
	return max((float64(cores)-reserve)/TableUnits, minHostCPU)
}

// Build returns the topology of a stage; knobs that are not set get their defaults. An
// error says which knob or stage is wrong and what is allowed.
func Build(stage sut.Stage, knobs sut.Knobs, unitCPU float64) (sut.Topology, error) {
	if err := Validate(knobs); err != nil {
		return sut.Topology{}, err
	}
	p := &plan{stage: stage, knobs: Complete(knobs), unit: unitCPU, hosts: map[sut.Role][]sut.Host{}}
	if position(stage) < 0 {
		var names []string
		for _, r := range Rungs() {
			names = append(names, string(r.Stage))
		}
		return sut.Topology{}, fmt.Errorf("unknown stage %q: want one of %s", stage, strings.Join(names, ", "))
	}
	tiers := Tiers()
	for _, t := range tiers {
		if err := t.check(stage, p.knobs); err != nil {
			return sut.Topology{}, err
		}
	}
	if err := p.placeAll(tiers, map[sut.Role]bool{}); err != nil {
		return sut.Topology{}, err
	}
	topology := sut.Topology{Stage: stage, UnitCPU: unitCPU, Knobs: p.knobs, Nodes: p.nodes, Counters: p.counters}
	for _, t := range tiers {
		topology.Hosts = append(topology.Hosts, p.hosts[t.Role]...)
		if topology.Frontends == nil {
			topology.Frontends = p.names(t.Role)
		}
	}
	if topology.Counters == nil {
		topology.Counters = topology.Frontends
	}
	return topology, nil
}

// position is the place of a stage on the ladder, from 0; -1 = it has none.
func position(stage sut.Stage) int {
	return slices.IndexFunc(Rungs(), func(r Rung) bool { return r.Stage == stage })
}

// before reports whether a stage comes before another one on the ladder.
func before(stage, other sut.Stage) bool { return position(stage) < position(other) }

// plan is a topology in the making.
type plan struct {
	stage    sut.Stage
	knobs    sut.Knobs
	unit     float64
	role     sut.Role // of the tier that is placed
	calls    []sut.Role
	hosts    map[sut.Role][]sut.Host // by the role of the tier that they belong to
	nodes    []sut.Node
	counters []string // nil = the frontends
}

// placeAll places each tier after those that it calls.
func (p *plan) placeAll(tiers []Tier, placed map[sut.Role]bool) error {
	for _, t := range tiers {
		if placed[t.Role] || before(p.stage, t.From) {
			continue
		}
		placed[t.Role] = true
		var calls []sut.Role
		if t.Calls != nil {
			calls = t.Calls(p.knobs)
		}
		called := slices.DeleteFunc(Tiers(), func(other Tier) bool { return !slices.Contains(calls, other.Role) })
		if err := p.placeAll(called, placed); err != nil {
			return err
		}
		p.role, p.calls = t.Role, calls
		if err := t.place(p); err != nil {
			return err
		}
	}
	return nil
}

// host adds a host of that many units and returns its name. At stage single there is one
// host, as large as the largest that is asked for.
func (p *plan) host(name string, units float64) string {
	if p.stage == sut.Single {
		name = "host-1"
		for role, hosts := range p.hosts {
			units = max(units, hosts[0].Units)
			delete(p.hosts, role)
		}
	}
	p.hosts[p.role] = append(p.hosts[p.role], sut.Host{
		Name: name, Units: units, CPU: max(units*p.unit, minHostCPU),
		MemoryBytes: int64(max(units, 1) * memoryPerUnit),
	})
	return name
}

// memory adds to the memory limit of the last host.
func (p *plan) memory(bytes int64) {
	hosts := p.hosts[p.role]
	hosts[len(hosts)-1].MemoryBytes += bytes
}

// node adds a node of the tier. It calls all nodes of the roles that its tier calls, and
// those that Uses names.
func (p *plan) node(n sut.Node) {
	n.Role = p.role
	var uses []string
	for _, role := range p.calls {
		uses = append(uses, p.names(role)...)
	}
	n.Uses = append(uses, n.Uses...)
	p.nodes = append(p.nodes, n)
}

// names lists the nodes of a role, in the order of their numbers.
func (p *plan) names(role sut.Role) []string {
	return p.those(func(n sut.Node) bool { return n.Role == role })
}

// those lists the nodes that fit, in the order of their numbers.
func (p *plan) those(fit func(sut.Node) bool) []string {
	var names []string
	for _, n := range p.nodes {
		if fit(n) {
			names = append(names, n.Name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	return names
}

// numbered is the name of the i-th node of a role, from 0.
func numbered(role sut.Role, i int) string { return fmt.Sprintf("%s-%d", role, i+1) }
