package ladder

import (
	"fmt"

	"github.com/stagebench/stagebench/sut"
)

// Web is the settings of the web hosts.
type Web struct {
	Hosts       int   // from stage lb on; one before
	CPU         Sizes // of each host in units
	Weights     Sizes // under lb.policy=weighted_round_robin
	Split       bool  // uploads have hosts of their own
	UploadHosts int   // of Hosts, with Split
	MaxConns    int   // connections that a host accepts
	Gzip        bool
}

// WebOf returns the settings of the web hosts.
func WebOf(k sut.Knobs) Web { return settings[Web](k) }

func (s *Web) knobs() []Knob {
	return []Knob{
		integer("web.hosts", &s.Hosts, 3, 1, 16, "number of web hosts, from stage lb on"),
		sizes("web.cpu", &s.CPU, 0.5, 32, "size of each web host in units, or one size for each, as 3,3,1: "+
			"the last one holds for the rest; at stage single the host has the larger of web.cpu and db.cpu"),
		sizes("web.weights", &s.Weights, 0.1, 100,
			"share of each web host under lb.policy=weighted_round_robin, as 2,1: the last one holds for the rest"),
		truth("web.split", &s.Split, false,
			"uploads have web hosts of their own, which the balancer routes them to, from stage lb on"),
		integer("web.upload_hosts", &s.UploadHosts, 1, 1, 15, "with web.split: how many of web.hosts take the uploads"),
		integer("web.max_conns", &s.MaxConns, 500, 1, 100_000,
			"connections that a web host accepts; past them it answers 503 with Retry-After"),
		truth("web.gzip", &s.Gzip, false, "compress texts for clients that accept it"),
	}
}

func webTier() Tier {
	return Tier{
		Role: sut.Web, From: sut.Single, Engines: []EngineInfo{{Name: sut.App}}, Knobs: new(Web).knobs(),
		Calls:   func(sut.Knobs) []sut.Role { return []sut.Role{sut.DB, sut.Cache, sut.Blob} },
		Scaling: &Scaling{Name: "web", Knob: "web.hosts", refuse: unbalanced},
		check:   checkWeb, place: placeWeb,
	}
}

// unbalanced says why a single web host has to stay alone.
func unbalanced(t sut.Topology) error {
	if before(t.Stage, sut.LB) {
		return fmt.Errorf("stage %s has no balancer to spread requests over several hosts\n"+
			"bring up a stage that has one: stagebench up --stage %s", t.Stage, sut.LB)
	}
	return nil
}

func checkWeb(_ sut.Stage, k sut.Knobs) error {
	if s := WebOf(k); s.Split && s.UploadHosts >= s.Hosts {
		return fmt.Errorf("web.split=true needs more web.hosts than web.upload_hosts, and has %d and %d",
			s.Hosts, s.UploadHosts)
	}
	return nil
}

func placeWeb(p *plan) error {
	s := WebOf(p.knobs)
	if before(p.stage, sut.LB) {
		s.Hosts, s.Split = 1, false
	}
	var uploads []sut.Node
	for i := range s.Hosts {
		name := numbered(p.role, i)
		n := sut.Node{Name: name, Host: p.host(name, s.CPU.At(i)), Engine: sut.App, Weight: s.Weights.At(i)}
		switch {
		case !s.Split:
			p.node(n)
		case i < s.UploadHosts:
			// The first ones, so that a change of web.hosts adds and removes hosts for reads.
			n.Service = sut.Uploads
			uploads = append(uploads, n)
		default:
			n.Service = sut.Reads
			p.node(n)
		}
	}
	// Sessions are in the memory of the reading hosts, which the others ask for them.
	reads := p.names(p.role)
	for _, n := range uploads {
		n.Uses = reads
		p.node(n)
	}
	return nil
}
