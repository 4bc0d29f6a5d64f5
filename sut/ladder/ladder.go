// Package ladder turns a stage and its knobs into a topology. It is pure: it starts
// nothing, opens nothing and reads no clock.
//
// Each role has one Tier value in a file of its own. It holds the engines of the role,
// its knobs, the checks of these knobs, the placement of its hosts and nodes, the tiers
// that it calls, how it scales while it serves, and the figures that it reports.
// Listing, starting, scaling and measuring all read these values. In this package, a new
// tier is one file and one line in Tiers.
//
// Command lines and files hold knobs as text. Code reads them as typed settings:
// CacheOf(knobs).Read is a ReadStrategy. The usual order of calls is ParseKnobs, Build,
// and then the settings of Topology.Knobs. All functions may be called concurrently. CPU
// is counted in cores, memory in bytes.
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

// StageInfo is a stage and a text that says what it adds to the stage before it.
type StageInfo struct {
	Stage sut.Stage
	Adds  string
}

// Stages lists the stages in the order of the ladder.
func Stages() []StageInfo {
	return []StageInfo{
		{sut.Single, "everything on one host: web and database"},
		{sut.DBSplit, "the database moves to its own host"},
		{sut.LB, "load balancer, several web hosts on private addresses"},
		{sut.Replicas, "database replicas serve reads, and one is promoted when the primary fails"},
		{sut.Caches, "cache tier in front of the database"},
		{sut.CDN, "edge caches near the users answer requests for images and assets"},
		{sut.Stateless, "sessions leave the web hosts, so any web host serves any user"},
		{sut.Queued, "workers process photos after their upload was answered; a broker keeps the jobs"},
		{sut.Sharded, "the database is partitioned: several primaries, each with a part of the users"},
	}
}

// Tiers lists the tiers in the order in which their hosts are shown.
func Tiers() []Tier {
	return []Tier{
		edgeTier(), wanTier(), lbTier(), webTier(), dbTier(), blobTier(), cacheTier(), sessionTier(), queueTier(),
		workerTier(),
	}
}

// Tier is the definition of all hosts of one role.
type Tier struct {
	Role    sut.Role
	From    sut.Stage    // the first stage that has it
	Engines []EngineInfo // the embedded engine first, then the engine that --engines native selects
	Knobs   []Knob
	// Calls returns the roles that its nodes call; these start first; nil = none.
	Calls   func(sut.Stage, sut.Knobs) []sut.Role
	Scaling []Scaling // the ways to change the number of hosts while it serves; nil = none
	Figures []Figure

	// check sets knobs that depend on the stage or on other knobs, and refuses conflicts.
	check func(stage sut.Stage, knobs sut.Knobs) error
	// place adds hosts and nodes.
	place func(*plan) error
}

// EngineInfo is an engine of a role.
type EngineInfo struct {
	Name   sut.Engine
	Native bool // a server that must be installed; false = the engine is in this binary
}

// Scaling says how the number of a tier's hosts changes while the system serves.
type Scaling struct {
	Name    string // name on the command line: "web", "replica"
	Knob    string // the knob that holds the number
	Besides int    // hosts that the number does not count
	Sharded bool   // keys are spread over its nodes, and move when a host is added or removed
	Keys    string // what moves between its nodes, in messages: "keys", "objects"; "" = nothing does
	// Moved and Held are metrics of the nodes: the keys that were moved to other nodes,
	// and the keys that the nodes hold; "" = there is no such metric.
	Moved, Held string
	Durable     bool // no other tier has its data: a node stops only after it has moved its data
	// refuse returns why a system cannot be scaled; nil = every system with the tier can.
	refuse func(sut.Topology) error
}

// Scale returns the topology with another number of hosts in one tier, and the role of that
// tier. name is a Scaling.Name. Scale refuses a change that is impossible while the system
// serves.
func Scale(now sut.Topology, name string, hosts int) (next sut.Topology, role sut.Role, err error) {
	s, role, err := scalingOf(now, name)
	if err != nil {
		return now, role, err
	}
	next, err = with(now, sut.Knobs{s.Knob: strconv.Itoa(hosts)})
	return next, role, err
}

// scalingOf returns how the number of hosts of a topology changes, and the role of these hosts.
func scalingOf(now sut.Topology, name string) (Scaling, sut.Role, error) {
	var names []string
	for _, t := range Tiers() {
		for _, s := range t.Scaling {
			switch {
			case s.Name != name:
				names = append(names, s.Name)
				continue
			case before(now.Stage, t.From):
				return s, t.Role, fmt.Errorf("stage %s has no %s hosts\n"+
					"bring up a later stage: stagebench up --stage %s", now.Stage, name, t.From)
			case s.refuse != nil:
				if err := s.refuse(now); err != nil {
					return s, t.Role, err
				}
			}
			return s, t.Role, nil
		}
	}
	return Scaling{}, "", fmt.Errorf("the number of %q hosts cannot change while the system serves\n"+
		"want one of: %s", name, strings.Join(names, ", "))
}

// with returns a topology with other values of some knobs.
func with(t sut.Topology, changed sut.Knobs) (sut.Topology, error) {
	knobs := maps.Clone(t.Knobs)
	maps.Copy(knobs, changed)
	return Build(t.Stage, knobs, t.UnitCPU)
}

// Sized is a topology with hosts of one tier in a number and a size.
type Sized struct {
	sut.Topology
	Hosts int     // of the tier
	Units float64 // of each of them
}

// UpAndOut returns a topology with as few hosts of a tier as possible, scaled up: these hosts times as large, and
// scaled out: times as many hosts. The last two have the same CPU. name is a Scaling.Name.
func UpAndOut(t sut.Topology, name string, times int) (sizes []Sized, role sut.Role, err error) {
	s, role, err := scalingOf(t, name)
	if err != nil {
		return nil, role, err
	}
	size := string(role) + ".cpu"
	units, err := strconv.ParseFloat(t.Knobs[size], 64)
	if err != nil {
		return nil, role, fmt.Errorf("%s=%s: want one size for all hosts", size, t.Knobs[size])
	}
	if units*t.UnitCPU < minHostCPU-1e-9 {
		return nil, role, fmt.Errorf("%s=%s is %.3g cores, and no host gets less than %g: several would have more than one "+
			"large one\nwant a larger %s", size, t.Knobs[size], units*t.UnitCPU, minHostCPU, size)
	}
	for _, want := range []Sized{
		{Hosts: 1, Units: units}, {Hosts: 1, Units: units * float64(times)}, {Hosts: times, Units: units},
	} {
		sized := Sized{Units: want.Units}
		sized.Topology, err = with(t, sut.Knobs{
			s.Knob: strconv.Itoa(want.Hosts - s.Besides), size: strconv.FormatFloat(want.Units, 'g', -1, 64),
		})
		if err != nil {
			return nil, role, err
		}
		hosts := map[string]bool{}
		for _, n := range sized.Nodes {
			if n.Role == role {
				hosts[n.Host] = true
			}
		}
		sized.Hosts = len(hosts)
		sizes = append(sizes, sized)
	}
	return sizes, role, nil
}

// Figure is a counter or gauge of nodes that is reported for each step.
type Figure struct {
	Name string // name in summary.json and CSV, with the unit last: "cache_evictions"
	// Metric is a Prometheus metric at the admin addresses of nodes with the roles From. It
	// is summed over its labels, or names one series: `x{kind="read"}`.
	Metric string
	Per    string // with Mean: the metric that Metric is divided by
	From   []sut.Role
	Kind   FigureKind
	Title  string // title of its column in tables; "" = no column
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

// FigureKind says how a figure is computed from scrapes before and after a step.
type FigureKind string

// The kinds of figures. All are summed over the nodes that report them.
const (
	Counter FigureKind = "counter" // delta between the scrapes
	Gauge   FigureKind = "gauge"   // value at the end of the step
	// Busiest is a counter with a label. The figure is the highest increase of a label in percent of the mean of all.
	Busiest FigureKind = "busiest"
	// Mean is the increase of a counter divided by that of another one, rounded; 0 if the other one has not increased.
	Mean FigureKind = "mean"
)

// Native reports whether an engine is a server that must be installed.
func Native(engine sut.Engine) bool {
	return slices.ContainsFunc(Tiers(), func(t Tier) bool {
		return slices.Contains(t.Engines, EngineInfo{engine, true})
	})
}

// Engines returns the engines of a topology, for the roles that have a choice of engines.
func Engines(t sut.Topology) map[sut.Role]sut.Engine {
	engines := map[sut.Role]sut.Engine{}
	for _, n := range t.Nodes {
		if Selectable(n.Role) {
			engines[n.Role] = n.Engine
		}
	}
	return engines
}

// Selectable reports whether there is more than one engine for a role.
func Selectable(role sut.Role) bool {
	return slices.ContainsFunc(Tiers(), func(t Tier) bool { return t.Role == role && len(t.Engines) > 1 })
}

// TableUnits is the number of units that the largest stage of the ladder needs. The unit
// is (cores - reserve) / TableUnits. It is the same in every stage, so rows of a table can
// be compared, whichever stages were selected.
const TableUnits = 15

// minHostCPU is the smallest size of a host in cores. Below it, the kernel's accounting
// of CPU time dominates the measurements.
const minHostCPU = 0.1

// memoryPerUnit is the memory limit of a host of one unit.
const memoryPerUnit = 512 << 20

// UnitCPU returns the size of the unit in cores. cores is the number of cores of the
// machine; reserve is the part of them that the load driver keeps for itself.
func UnitCPU(cores int, reserve float64) float64 {
	return max((float64(cores)-reserve)/TableUnits, minHostCPU)
}

// Build returns the topology of a stage. A knob that is not set has its default. An error
// names the wrong knob or stage and the allowed values.
func Build(stage sut.Stage, knobs sut.Knobs, unitCPU float64) (sut.Topology, error) {
	if err := Validate(knobs); err != nil {
		return sut.Topology{}, err
	}
	p := &plan{stage: stage, knobs: Complete(knobs), unit: unitCPU, hosts: map[sut.Role][]sut.Host{}}
	if position(stage) < 0 {
		var names []string
		for _, r := range Stages() {
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
	topology := sut.Topology{
		Stage: stage, UnitCPU: unitCPU, Knobs: p.knobs, Nodes: p.nodes, Fallbacks: p.fallbacks, Counters: p.counters,
	}
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

// position is the index of a stage on the ladder, from 0; -1 = unknown stage.
func position(stage sut.Stage) int {
	return slices.IndexFunc(Stages(), func(r StageInfo) bool { return r.Stage == stage })
}

// before reports whether a stage comes before another one on the ladder.
func before(stage, other sut.Stage) bool { return position(stage) < position(other) }

// plan is a topology under construction.
type plan struct {
	stage sut.Stage
	knobs sut.Knobs
	unit  float64    // cores
	role  sut.Role   // role of the tier that is being placed
	calls []sut.Role // roles that this tier calls
	hosts map[sut.Role][]sut.Host
	nodes []sut.Node
	// Of the topology. counters = nil stands for the frontends.
	fallbacks, counters []string
}

// placeAll places every tier of the stage. A tier comes after the tiers that it calls.
func (p *plan) placeAll(tiers []Tier, placed map[sut.Role]bool) error {
	for _, t := range tiers {
		if placed[t.Role] || before(p.stage, t.From) {
			continue
		}
		placed[t.Role] = true
		var calls []sut.Role
		if t.Calls != nil {
			calls = t.Calls(p.stage, p.knobs)
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

// host adds a host and returns its name. At stage single all tiers share one host, which
// gets the size of the largest.
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

// apart adds a host that stands for no machine of the system. Its size does not count into the system's.
func (p *plan) apart(name string, units float64) string {
	p.hosts[p.role] = append(p.hosts[p.role], sut.Host{Name: name, CPU: units * p.unit, MemoryBytes: memoryPerUnit})
	return name
}

// memory adds to the memory limit of the last host.
func (p *plan) memory(bytes int64) {
	hosts := p.hosts[p.role]
	hosts[len(hosts)-1].MemoryBytes += bytes
}

// node adds a node of the tier. The node uses all nodes of the roles that its tier calls,
// and the nodes that n.Uses already names.
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
	return p.filter(func(n sut.Node) bool { return n.Role == role })
}

// filter lists the nodes for which keep is true, in the order of their numbers.
func (p *plan) filter(keep func(sut.Node) bool) []string {
	var names []string
	for _, n := range p.nodes {
		if keep(n) {
			names = append(names, n.Name)
		}
	}
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(len(a), len(b)), cmp.Compare(a, b)) })
	return names
}

// numbered is the name of the node of a role with index i, from 0.
func numbered(role sut.Role, i int) string { return fmt.Sprintf("%s-%d", role, i+1) }
