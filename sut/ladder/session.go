package ladder

import (
	"errors"
	"fmt"

	"github.com/stagebench/stagebench/sut"
)

// Session is the settings of the sessions of users.
type Session struct {
	Store    SessionStore // SessionMemory before stage stateless
	CPU      float64      // size of the session host in units
	Engine   sut.Engine
	MemoryMB float64 // memory budget of the session host in MiB
}

// SessionStore selects where sessions are.
type SessionStore string

// With SessionMemory they are in the memory of the web host that started them. With SessionRESP they are on a session
// host, and with SessionSQL in the primary database, and any web host serves any user.
const (
	SessionMemory SessionStore = "memory"
	SessionRESP   SessionStore = "resp"
	SessionSQL    SessionStore = "sql"
)

// SessionOf returns the settings of the sessions.
func SessionOf(k sut.Knobs) Session { return settings[Session](k) }

// Bytes is the memory budget of the session host.
func (s Session) Bytes() int64 { return int64(s.MemoryMB * (1 << 20)) }

// Shared reports whether all web hosts share the sessions.
func (s Session) Shared() bool { return s.Store != SessionMemory }

func (s *Session) knobs() []Knob {
	return []Knob{
		choice("session.store", &s.Store, SessionRESP, "where sessions are, from stage stateless on: resp = on a session "+
			"host, which loses them when it restarts; sql = in the primary database; memory = in the web host that started "+
			"them, which loses them when it restarts; stagebench set moves them from memory to another store while the "+
			"system serves", SessionMemory, SessionSQL).whileServing(moveSessions),
		number("session.cpu", &s.CPU, 1, 0.5, 32, "size of the session host in units"),
		engine(sut.Session, &s.Engine, sessionEngines(), "implementation of the session host"),
		number("session.memory_mb", &s.MemoryMB, 64, 0.1, 100_000, "memory budget of the session host in MiB; when it is "+
			"full, no session is removed, and new logins get 507; a session takes about 250 bytes; redis needs at least 2"),
	}
}

func sessionEngines() []EngineInfo {
	return []EngineInfo{{Name: sut.RESP}, {Name: sut.Redis, Native: true}}
}

func sessionTier() Tier {
	from := []sut.Role{sut.Session}
	return Tier{
		Role: sut.Session, From: sut.Stateless, Engines: sessionEngines(), Knobs: new(Session).knobs(),
		Figures: []Figure{
			{
				Name: "sessions_active", Metric: "stagebench_session_node_sessions", From: from, Kind: Gauge,
				Doc: "sessions on the session host",
			},
			{
				Name: "sessions_bytes", Metric: "stagebench_session_node_bytes", From: from, Kind: Gauge,
				Doc: "memory of the session host, in bytes",
			},
			{
				Name: "logins_refused", Metric: "stagebench_session_node_refused_total", From: from, Kind: Counter,
				Doc: "logins that the session host refused because its memory was full",
			},
		},
		check: checkSession, place: placeSession,
	}
}

func checkSession(stage sut.Stage, k sut.Knobs) error {
	s := SessionOf(k)
	switch {
	case before(stage, sut.Stateless):
		k["session.store"] = string(SessionMemory)
	case s.Store == SessionSQL && DBOf(k).Topology != PrimaryReplica:
		return fmt.Errorf("session.store=sql needs db.topology=%s, not %s: each web host would log users in at a primary "+
			"of its own, and the other hosts would not know them yet", PrimaryReplica, DBOf(k).Topology)
	case s.Store == SessionRESP && s.Engine == sut.Redis && s.MemoryMB < 2:
		return errors.New("session.memory_mb: redis uses 1 MiB for its own structures, so it needs 2 or more")
	}
	return nil
}

// moveSessions moves sessions from the memory of web hosts to a shared store. Then no user needs to stay on a host.
func moveSessions(stage sut.Stage, k sut.Knobs, value string) error {
	switch {
	case before(stage, sut.Stateless):
		return fmt.Errorf("at stage %s, sessions are always in the memory of web hosts\n"+
			"bring up a later stage: stagebench up --stage %s --set session.store=memory", stage, sut.Stateless)
	case SessionOf(k).Shared():
		return fmt.Errorf("sessions are in the store %s, and can move only from memory to resp or sql", k["session.store"])
	}
	k["session.store"], k["lb.sticky"] = value, "false"
	return nil
}

// sharedSessions reports whether all web hosts of a stage share the sessions.
func sharedSessions(stage sut.Stage, k sut.Knobs) bool {
	return !before(stage, sut.Stateless) && SessionOf(k).Shared()
}

func placeSession(p *plan) error {
	s := SessionOf(p.knobs)
	if s.Store != SessionRESP {
		return nil
	}
	name := numbered(p.role, 0)
	p.node(sut.Node{Name: name, Host: p.host(name, s.CPU), Engine: s.Engine})
	p.memory(3 * s.Bytes()) // as for a cache
	return nil
}
