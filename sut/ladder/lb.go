package ladder

import (
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// LB is the settings of the balancers.
type LB struct {
	Hosts          int
	CPU            float64 // size of each host in units
	Engine         sut.Engine
	Layer          Layer
	Policy         string // "round_robin", "least_conn", ...
	Routes         []sut.Route
	HealthInterval time.Duration // time between two health checks of a web host
	EjectAfter     int           // consecutive failures after which a web host is ejected; 0 = never

	sticky string // "true", "false", or "auto"; checkLB replaces "auto"
}

// Layer is the network layer at which a balancer works.
type Layer string

// An L7 balancer forwards requests, an L4 balancer forwards connections.
const (
	L7 Layer = "l7"
	L4 Layer = "l4"
)

// LBOf returns the settings of the balancers.
func LBOf(k sut.Knobs) LB { return settings[LB](k) }

// Sticky reports whether a cookie keeps a user on one web host. It is for the knobs of a topology, in which checkLB has
// replaced "auto".
func (s LB) Sticky() bool { return s.sticky == "true" }

func (s *LB) knobs() []Knob {
	return []Knob{
		integer("lb.hosts", &s.Hosts, 1, 1, 8,
			"number of balancer hosts; clients that cannot connect to one fail over to the next"),
		number("lb.cpu", &s.CPU, 2, 0.5, 32, "size of each balancer host in units"),
		engine(sut.Balance, &s.Engine, lbEngines(), "implementation of the balancer"),
		choice("lb.layer", &s.Layer, L7,
			"l7 balances requests, and may route them; l4 balances connections, and sees only addresses", L4),
		choice("lb.policy", &s.Policy, "round_robin",
			"how the balancer picks a web host; least_response_time needs lb.engine=balance",
			"weighted_round_robin", "ip_hash", "least_conn", "least_response_time"),
		choice("lb.sticky", &s.sticky, "auto", "cookie affinity: a user stays on the web host that holds the session; "+
			"auto = true at l7 while sessions are in the memory of web hosts, else false", "true", "false"),
		routes("lb.routes", &s.Routes, "which web hosts get which requests (l7); the first match decides, "+
			"for example 'path=/img/* -> web-3; method=POST header=X-Batch:1 -> web-1 web-2'; "+
			"a request without a match may go to any web host"),
		seconds("lb.health_interval", &s.HealthInterval, 1, 0.05, 60, "seconds between two health checks of a web host"),
		integer("lb.eject_after", &s.EjectAfter, 5, 0, 1000,
			"consecutive failures after which a web host is ejected for a while; 0 = only health checks mark it down"),
	}
}

func lbEngines() []EngineInfo {
	return []EngineInfo{{Name: sut.OwnBalance}, {Name: sut.HAProxy, Native: true}}
}

func lbTier() Tier {
	return Tier{
		Role: sut.Balance, From: sut.LB, Engines: lbEngines(), Knobs: new(LB).knobs(),
		Calls: func(sut.Stage, sut.Knobs) []sut.Role { return []sut.Role{sut.Web} },
		check: checkLB, place: placeLB,
	}
}

func checkLB(stage sut.Stage, k sut.Knobs) error {
	s := LBOf(k)
	if s.sticky == "auto" {
		s.sticky = strconv.FormatBool(s.Layer == L7 && !sharedSessions(stage, k))
	}
	switch {
	case s.Layer == L4 && s.Sticky():
		return errors.New("lb.sticky=true needs lb.layer=l7: a layer 4 balancer does not see cookies; " +
			"lb.policy=ip_hash keeps a client address on one host")
	case s.Layer == L4 && (WebOf(k).Split || s.Routes != nil):
		return errors.New("web.split and lb.routes need lb.layer=l7: a layer 4 balancer does not see requests")
	case s.Engine == sut.HAProxy && s.Policy == "least_response_time":
		return errors.New("lb.policy=least_response_time needs lb.engine=balance: HAProxy has no such algorithm")
	}
	k["lb.sticky"] = s.sticky
	return nil
}

func placeLB(p *plan) error {
	s, webs := LBOf(p.knobs), p.names(sut.Web)
	for _, route := range s.Routes {
		for _, name := range route.To {
			if !slices.Contains(webs, name) {
				return fmt.Errorf("lb.routes names %s, but the web hosts are %s", name, strings.Join(webs, ", "))
			}
		}
	}
	offering := func(service sut.Service) []string {
		return p.filter(func(n sut.Node) bool { return n.Service == service })
	}
	if uploads := offering(sut.Uploads); uploads != nil {
		s.Routes = append(s.Routes,
			sut.Route{Method: "POST", Path: "/api/photos", To: uploads}, sut.Route{To: offering(sut.Reads)})
	}
	for i := range s.Hosts {
		name := numbered(p.role, i)
		p.node(sut.Node{Name: name, Host: p.host(name, s.CPU), Engine: s.Engine, Routes: s.Routes})
	}
	if s.Layer == L4 {
		p.counters = webs // the balancers see connections only
	}
	return nil
}
