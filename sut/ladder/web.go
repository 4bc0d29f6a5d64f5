package ladder

import (
	"fmt"

	"github.com/stagebench/stagebench/sut"
)

// Web is the settings of the web hosts.
type Web struct {
	Hosts       int   // from stage lb on; before it there is one
	CPU         Sizes // size of each host in units
	Weights     Sizes // weight of each host under lb.policy=weighted_round_robin
	Split       bool  // uploads have hosts of their own
	UploadHosts int   // with Split: how many of Hosts serve uploads
	MaxConns    int   // connections that a host accepts
	Gzip        bool
}

// WebOf returns the settings of the web hosts.
func WebOf(k sut.Knobs) Web { return settings[Web](k) }

func (s *Web) knobs() []Knob {
	return []Knob{
		integer("web.hosts", &s.Hosts, 3, 1, 16, "number of web hosts, from stage lb on"),
		sizes("web.cpu", &s.CPU, 0.5, 32, "size of the web hosts in units: one size, or one for each host, such as 3,3,1; "+
			"the last size applies to all further hosts; at stage single the host has the larger of web.cpu and db.cpu"),
		sizes("web.weights", &s.Weights, 0.1, 100, "share of each web host under lb.policy=weighted_round_robin, "+
			"such as 2,1; the last share applies to all further hosts"),
		truth("web.split", &s.Split, false,
			"uploads have web hosts of their own, and the balancer routes uploads to them, from stage lb on"),
		integer("web.upload_hosts", &s.UploadHosts, 1, 1, 15, "with web.split: how many of web.hosts serve uploads"),
		integer("web.max_conns", &s.MaxConns, 500, 1, 100_000,
			"maximum connections of a web host, if its memory allows so many (1820 per unit of web.cpu); "+
				"requests on further connections get 503 with Retry-After"),
		truth("web.gzip", &s.Gzip, false, "compress text responses for clients that accept it"),
	}
}

func webTier() Tier {
	return Tier{
		Role: sut.Web, From: sut.Single, Engines: []EngineInfo{{Name: sut.App}}, Knobs: new(Web).knobs(),
		Calls:   func(sut.Stage, sut.Knobs) []sut.Role { return []sut.Role{sut.DB, sut.Cache, sut.Blob, sut.Session} },
		Scaling: &Scaling{Name: "web", Knob: "web.hosts", refuse: unbalanced},
		Figures: []Figure{
			{
				Name: "origin_static_requests", Metric: "stagebench_static_requests_total",
				From: []sut.Role{sut.Web}, Kind: Counter, Doc: "requests for images and assets that web hosts answered",
			},
			{
				Name: "origin_static_bytes", Metric: "stagebench_static_bytes_total",
				From: []sut.Role{sut.Web}, Kind: Counter, Doc: "bytes of images and assets that web hosts sent",
			},
		},
		check: checkWeb, place: placeWeb,
	}
}

// unbalanced refuses to scale web hosts without a balancer in front of them.
func unbalanced(t sut.Topology) error {
	if before(t.Stage, sut.LB) {
		return fmt.Errorf("stage %s has no balancer to spread requests over several hosts\n"+
			"bring up a stage that has one: stagebench up --stage %s", t.Stage, sut.LB)
	}
	return nil
}

func checkWeb(_ sut.Stage, k sut.Knobs) error {
	if s := WebOf(k); s.Split && s.UploadHosts >= s.Hosts {
		return fmt.Errorf("web.split=true needs more web.hosts (%d) than web.upload_hosts (%d)",
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
			// Uploads get the first hosts. Otherwise scaling web.hosts would add or remove
			// upload hosts instead of hosts for reads.
			n.Service = sut.Uploads
			uploads = append(uploads, n)
		default:
			n.Service = sut.Reads
			p.node(n)
		}
	}
	// If the hosts for reads hold the sessions, upload hosts ask them.
	reads := p.names(p.role)
	for _, n := range uploads {
		if !SessionOf(p.knobs).Shared() {
			n.Uses = reads
		}
		p.node(n)
	}
	return nil
}
