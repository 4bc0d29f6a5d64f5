package ladder

import (
	"time"

	"github.com/stagebench/stagebench/sut"
)

// Edge is the settings of the edges.
type Edge struct {
	Hosts  int     // 0 before stage cdn
	CPU    float64 // size of each host in units
	Engine sut.Engine
	TTL    time.Duration // replaces the lifetime that the origin gives; 0 = as the origin says
	Memory float64       // memory budget of each host in MiB
	Admit  string        // sut.AdmitAll or sut.AdmitSecondHit
}

// EdgeOf returns the settings of the edges.
func EdgeOf(k sut.Knobs) Edge { return settings[Edge](k) }

// Bytes is the memory budget of each host.
func (s Edge) Bytes() int64 { return int64(s.Memory * (1 << 20)) }

func (s *Edge) knobs() []Knob {
	return []Knob{
		integer("cdn.edges", &s.Hosts, 1, 0, 16, "edges in the region of the users, from stage cdn on; "+
			"clients use any of them, and the origin if none accepts their connection; 0 = no edges"),
		// Twice a web host, as for the balancer: all requests pass through it.
		number("edge.cpu", &s.CPU, 2, 0.5, 32, "size of each edge host in units"),
		engine(sut.Edge, &s.Engine, edgeEngines(), "implementation of the edges; list engines shows how they differ"),
		duration("cdn.ttl", &s.TTL, 0, 365*24*time.Hour, "lifetime of what an edge stores, instead of the lifetime that "+
			"the origin gives it; 0s = as the origin says: a year for a URL with a version, a minute for others"),
		number("cdn.memory", &s.Memory, 64, 1, 100_000,
			"memory budget of each edge in MiB, for bodies, headers, keys and index"),
		choice("cdn.admit", &s.Admit, sut.AdmitAll, "what an edge stores: all = each response that may be stored; "+
			"second_hit = from the second request for it on, because most content is requested only once",
			sut.AdmitSecondHit),
	}
}

func edgeEngines() []EngineInfo {
	return []EngineInfo{{Name: sut.OwnEdge}, {Name: sut.Varnish, Native: true}, {Name: sut.Nginx, Native: true}}
}

func edgeTier() Tier {
	return Tier{
		Role: sut.Edge, From: sut.CDN, Engines: edgeEngines(), Knobs: new(Edge).knobs(),
		Calls: func(_ sut.Stage, k sut.Knobs) []sut.Role {
			if WANOf(k).Delay > 0 {
				return []sut.Role{sut.WAN}
			}
			return []sut.Role{sut.Balance}
		},
		Scaling: []Scaling{{Name: "edge", Knob: "cdn.edges"}},
		Figures: []Figure{
			{
				Name: "edge_hits", Metric: "stagebench_edge_hits_total", From: []sut.Role{sut.Edge}, Kind: Counter,
				Doc: "requests that edges answered without the origin, by their own count",
			},
			{
				Name: "edge_fetches", Metric: "stagebench_edge_fetches_total", From: []sut.Role{sut.Edge}, Kind: Counter,
				Doc: "requests that edges sent to the origin, by their own count",
			},
			{
				Name: "edge_evictions", Metric: "stagebench_edge_evictions_total", From: []sut.Role{sut.Edge}, Kind: Counter,
				Title: "edge\nevictions", Doc: "entries that edges removed because memory was full",
			},
		},
		check: checkEdge, place: placeEdge,
	}
}

// checkEdge: before stage cdn there are no edges.
func checkEdge(stage sut.Stage, k sut.Knobs) error {
	if before(stage, sut.CDN) {
		k["cdn.edges"] = "0"
	}
	return nil
}

func placeEdge(p *plan) error {
	s := EdgeOf(p.knobs)
	if s.Hosts == 0 {
		return nil
	}
	for i := range s.Hosts {
		name := numbered(p.role, i)
		p.node(sut.Node{Name: name, Host: p.host(name, s.CPU), Engine: s.Engine})
		// The Go runtime collects a heap when it has doubled, and allocators round up.
		p.memory(3 * s.Bytes())
	}
	p.counters = nil // the edges: they see every request of a client
	for _, role := range p.calls {
		p.fallbacks = append(p.fallbacks, p.names(role)...)
	}
	return nil
}
