package ladder

import (
	"errors"
	"fmt"
	"time"

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
	Burn        time.Duration // CPU time that each request costs on top

	Autoscale                  ScaleMetric // ScaleOff = the number of hosts is fixed
	AutoscaleMin, AutoscaleMax int         // hosts
	AutoscaleWindow            time.Duration
	AutoscaleInterval          time.Duration

	target float64 // 0 = the default of the metric
}

// ScaleMetric is the metric that decides the number of web hosts.
type ScaleMetric string

// The metrics: the share of its CPU budget that a host uses, and the requests in flight per host.
const (
	ScaleOff      ScaleMetric = "off"
	ScaleCPU      ScaleMetric = "cpu"
	ScaleInFlight ScaleMetric = "in_flight"
)

// ScaleTarget returns the target of the metric per host: percent of the CPU budget, or requests.
func (s Web) ScaleTarget() float64 {
	switch {
	case s.target > 0:
		return s.target
	case s.Autoscale == ScaleInFlight:
		return 4
	}
	return 60
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
		duration("web.burn", &s.Burn, 0, time.Second, "CPU time that each request costs a web host on top, such as 50us: a "+
			"slowdown of known size, to see whether a gate or an alert finds it"),
		choice("web.autoscale", &s.Autoscale, ScaleOff, "metric that decides the number of web hosts while the system "+
			"runs, from stage lb on; web.hosts is the number at the start; cpu saturates at 100 %, so it grows in several "+
			"steps; the sessions of a removed host are lost while sessions live in web hosts", ScaleCPU, ScaleInFlight),
		integer("web.autoscale_min", &s.AutoscaleMin, 1, 1, 16, "with web.autoscale: minimum number of web hosts"),
		integer("web.autoscale_max", &s.AutoscaleMax, 16, 1, 16, "with web.autoscale: maximum number of web hosts"),
		number("web.autoscale_target", &s.target, 0, 0, 10_000, "with web.autoscale: wanted mean per host, in percent of "+
			"the CPU budget or in requests in flight; 0 = 60 % or 4 requests"),
		seconds("web.autoscale_window", &s.AutoscaleWindow, 300, 1, 3600, "with web.autoscale: stabilisation window in "+
			"seconds; hosts are removed down to the highest number that was needed within it"),
		seconds("web.autoscale_interval", &s.AutoscaleInterval, 15, 0.2, 300, "with web.autoscale: seconds between two "+
			"decisions; the metric is averaged over this time"),
	}
}

func webTier() Tier {
	return Tier{
		Role: sut.Web, From: sut.Single, Engines: []EngineInfo{{Name: sut.App}}, Knobs: new(Web).knobs(),
		Calls: func(sut.Stage, sut.Knobs) []sut.Role {
			return []sut.Role{sut.DB, sut.Cache, sut.Blob, sut.Session, sut.Queue}
		},
		Scaling: []Scaling{{Name: "web", Knob: "web.hosts", refuse: unbalanced}},
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

func checkWeb(stage sut.Stage, k sut.Knobs) error {
	s := WebOf(k)
	switch {
	case s.Split && s.UploadHosts >= s.Hosts:
		return fmt.Errorf("web.split=true needs more web.hosts (%d) than web.upload_hosts (%d)",
			s.Hosts, s.UploadHosts)
	case s.Autoscale == ScaleOff:
		return nil
	case before(stage, sut.LB):
		return fmt.Errorf("web.autoscale=%s needs a balancer, and stage %s has none\n"+
			"use stage %s or a later one", s.Autoscale, stage, sut.LB)
	case s.Split:
		return errors.New("web.autoscale and web.split=true exclude each other: there is one target for all web hosts\n" +
			"use one of them")
	case s.AutoscaleMin > s.AutoscaleMax:
		return fmt.Errorf("web.autoscale_min (%d) is more than web.autoscale_max (%d)", s.AutoscaleMin, s.AutoscaleMax)
	case s.Hosts < s.AutoscaleMin || s.Hosts > s.AutoscaleMax:
		return fmt.Errorf("web.autoscale keeps web.hosts from %d to %d, not %d\n"+
			"change web.hosts, web.autoscale_min or web.autoscale_max", s.AutoscaleMin, s.AutoscaleMax, s.Hosts)
	case s.Autoscale == ScaleCPU && s.target > 100:
		return fmt.Errorf("web.autoscale_target=%g: a host cannot use more than 100 %% of its CPU\n"+
			"use a lower target, or web.autoscale=in_flight", s.target)
	case s.AutoscaleWindow < s.AutoscaleInterval:
		return fmt.Errorf("web.autoscale_window (%v) is shorter than web.autoscale_interval (%v)",
			s.AutoscaleWindow, s.AutoscaleInterval)
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
