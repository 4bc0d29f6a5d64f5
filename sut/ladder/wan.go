package ladder

import (
	"time"

	"github.com/stagebench/stagebench/sut"
)

// WAN is the settings of the network between the users and the origin.
type WAN struct {
	Delay time.Duration // round trip between users and origin; 0 = no node adds a delay
}

// WANOf returns the settings of the network.
func WANOf(k sut.Knobs) WAN { return settings[WAN](k) }

func (s *WAN) knobs() []Knob {
	return []Knob{
		duration("cdn.delay", &s.Delay, 0, 10*time.Second, "round trip between the users and the origin, at every stage; "+
			"edges are near the users and do not have it; a relay adds it; compare only cells with the same delay"),
	}
}

// wanUnits is the size of the host of the relay, in units. The host is no part of the system.
const wanUnits = 2

func wanTier() Tier {
	return Tier{
		Role: sut.WAN, From: sut.Single, Engines: []EngineInfo{{Name: sut.Relay}}, Knobs: new(WAN).knobs(),
		Calls: func(stage sut.Stage, _ sut.Knobs) []sut.Role {
			if before(stage, sut.LB) {
				return []sut.Role{sut.Web}
			}
			return []sut.Role{sut.Balance}
		},
		check: func(sut.Stage, sut.Knobs) error { return nil }, place: placeWAN,
	}
}

func placeWAN(p *plan) error {
	if WANOf(p.knobs).Delay == 0 {
		return nil
	}
	name := numbered(p.role, 0)
	p.node(sut.Node{Name: name, Host: p.apart(name, wanUnits), Engine: sut.Relay})
	if p.counters == nil {
		for _, role := range p.calls {
			p.counters = append(p.counters, p.names(role)...)
		}
	}
	return nil
}
