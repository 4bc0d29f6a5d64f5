package faults_test

import (
	gocmp "cmp"
	"context"
	"fmt"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/targets"
	"github.com/stagebench/stagebench/targets/faults"
)

func TestRead(t *testing.T) {
	got, err := faults.Read([]byte(`
- {at: 3s, do: pause, who: replica}
- at: 1500ms
  do: kill
  who: primary
- {at: 4s, do: resume, who: replica}
- {at: 0s, do: restart, who: web-2}
- {at: 5s, do: kill, who: worker, for: 10s}
`), "f.yaml")
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"0s restart web-2", "1.5s kill primary", "3s pause replica", "4s resume replica", "5s kill worker for 10s",
	}
	if diff := cmp.Diff(want, got.Texts()); diff != "" {
		t.Errorf("(-want +got)\n%s", diff)
	}
}

func TestReadRefuses(t *testing.T) {
	for text, want := range map[string]string{
		"":                                "the file lists no faults",
		"at: 3s":                          "f.yaml:1:",
		"- {at: 3s, do: kill, whom: web}": "f.yaml:1:22: unknown field \"whom\"",
		"- {at: soon, do: kill, who: web}": "f.yaml:1:8: at \"soon\": " +
			"want the time since the start of the step, for example 3s",
		"- {at: -1s, do: kill, who: web}":   "at \"-1s\"",
		"- {do: kill, who: web}":            "at \"\"",
		"- {at: 3s, do: explode, who: web}": "do \"explode\": want one of kill, pause, resume, restart",
		"- {at: 3s, do: kill}": "who is missing: " +
			"want a host, a node, or a role: " +
			"edge, wan, lb, web, db, blob, cache, session, queue, worker, primary, replica",
		"- {at: 3s, do: pause, who: web, for: 2s}":                      "f.yaml:1:38: for \"2s\": only a kill has it",
		"- {at: 3s, do: kill, who: web, for: 0s}":                       "f.yaml:1:37: for \"0s\": want a time",
		"- {at: 3s, do: resume, who: web}":                              "no earlier fault pauses web",
		"- {at: 1s, do: explode}\n- {do: kill}":                         "f.yaml:2:",
		"- {at: 3s, do: [kill":                                          "f.yaml:1:",
		"- {at: 2s, do: pause, who: a}\n- {at: 1s, do: resume, who: a}": "resume a at 1s",
		strings.Repeat("#", 2<<20):                                      "want at most",
	} {
		_, err := faults.Read([]byte(text), "f.yaml")
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.80q: %v, want %q", text, err, want)
		}
	}
}

func TestCheck(t *testing.T) {
	topology := sut.Topology{
		Stage: "lb",
		Hosts: []sut.Host{{Name: "big-1"}, {Name: "db-1"}},
		Nodes: []sut.Node{{Name: "web-1", Host: "big-1", Role: sut.Web}, {Name: "db-1", Host: "db-1", Role: sut.DB}},
	}
	check := func(name string, valid bool) {
		t.Helper()
		err := faults.Schedule{{At: time.Second, Do: faults.Kill, Target: name}}.Check(topology, 2*time.Second)
		if (err == nil) != valid {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, valid := range map[string]bool{
		"big-1": true, "web-1": true, "web": true, "db": true, "primary": true,
		"replica": false, "lb": false, "web-2": false, "primary-1": false,
	} {
		check(name, valid)
	}
	late := faults.Schedule{{At: time.Second, Do: faults.Kill, Target: "web"}}
	if err := late.Check(topology, time.Second); err == nil {
		t.Error("a fault after the end of the step was accepted")
	}
	topology.Nodes = []sut.Node{
		{Name: "db-1", Host: "db-1", Role: sut.DB, Shard: 1, Replicated: true},
		{Name: "db-2", Host: "db-1", Role: sut.DB, Shard: 2},
	}
	for name, valid := range map[string]bool{
		"primary": true, "primary-1": true, "primary-2": true, "primary-3": false, "replica-1": true, "replica-2": false,
	} {
		check(name, valid)
	}
}

// system is a fake target. It executes faults at once and restarts a killed node after
// restartTime.
type system struct {
	mu    sync.Mutex
	nodes []targets.NodeStatus // guarded by mu
	begin time.Time
	done  []string // guarded by mu: executed faults with their times
}

// restartTime lies between two polls of awaitServing, so that the poll that sees the
// restarted node is certain.
const restartTime = 305 * time.Millisecond

func (s *system) Status() []targets.NodeStatus {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]targets.NodeStatus(nil), s.nodes...)
}

// setPrimary makes one database the primary and all others replicas; "" = no primary.
func (s *system) setPrimary(name string) {
	for i := range s.nodes {
		if s.nodes[i].Role == sut.DB {
			s.nodes[i].ReplicationRole = targets.Replica
			if s.nodes[i].Node == name {
				s.nodes[i].ReplicationRole = targets.Primary
			}
		}
	}
}

func (s *system) act(verb, name string, state targets.State) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.done = append(s.done, fmt.Sprintf("%v %s %s", time.Since(s.begin), verb, name))
	for i := range s.nodes {
		if s.nodes[i].Node == name {
			s.nodes[i].State = state
			return nil
		}
	}
	return fmt.Errorf("there is no host or node %q", name)
}

func (s *system) KillFor(name string, down time.Duration) error {
	time.AfterFunc(restartTime+down, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for i := range s.nodes {
			if s.nodes[i].Node == name {
				s.nodes[i].State, s.nodes[i].Restarts = targets.Serving, s.nodes[i].Restarts+1
			}
		}
	})
	if down > 0 {
		return s.act("kill for "+down.String(), name, targets.Dead)
	}
	return s.act("kill", name, targets.Dead)
}
func (s *system) Pause(name string) error  { return s.act("pause", name, targets.Paused) }
func (s *system) Resume(name string) error { return s.act("resume", name, targets.Serving) }

// run injects the faults of a file into a system of two web and three database nodes, in
// a synctest bubble. It returns the calls that the target got and the events.
func run(t *testing.T, file string, length time.Duration, change func(*system)) (done, events []string) {
	t.Helper()
	schedule, err := faults.Read([]byte(file), "f.yaml")
	if err != nil {
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		s := &system{begin: time.Now()}
		for _, name := range []string{"web-1", "web-2", "db-1", "db-2", "db-3"} {
			role, _, _ := strings.Cut(name, "-")
			s.nodes = append(s.nodes, targets.NodeStatus{
				Node: name, Host: name, Role: sut.Role(role), State: targets.Serving,
			})
		}
		s.setPrimary("db-1")
		if change != nil {
			change(s)
		}
		ctx, cancel := context.WithTimeout(t.Context(), length)
		defer cancel()
		for _, e := range faults.Run(ctx, schedule, s.begin, s) {
			events = append(events, fmt.Sprintf("%v %s: %s", time.Unix(0, e.UnixNS).Sub(s.begin), e.Node, e.Text))
		}
		done = s.done
		time.Sleep(restartTime) // inside the bubble: pending restarts end before the bubble does
	})
	return done, events
}

// scenario is a file of faults and its expected effects.
type scenario struct {
	file   string
	length time.Duration // of the step; 0 = a minute
	change func(*system) // called before the first fault; may be nil
	done   []string      // expected calls of the target
	events []string      // expected events
}

func (p scenario) check(t *testing.T) {
	done, events := run(t, p.file, gocmp.Or(p.length, time.Minute), p.change)
	if diff := cmp.Diff(p.done, done); diff != "" {
		t.Errorf("calls (-want +got)\n%s", diff)
	}
	if diff := cmp.Diff(p.events, events); diff != "" {
		t.Errorf("events (-want +got)\n%s", diff)
	}
}

func TestRun(t *testing.T) {
	for name, test := range map[string]scenario{
		"by name": {
			file: "- {at: 1s, do: kill, who: web-2}\n- {at: 2s, do: pause, who: db-3}\n- {at: 3s, do: resume, who: db-3}",
			done: []string{"1s kill web-2", "2s pause db-3", "3s resume db-3"},
			events: []string{
				"1s web-2: fault: 1s kill web-2", "2s db-3: fault: 2s pause db-3", "3s db-3: fault: 3s resume db-3",
			},
		},
		"kept down": {
			file:   "- {at: 1s, do: kill, who: web-2, for: 2s}\n- {at: 2s, do: kill, who: web}",
			done:   []string{"1s kill for 2s web-2", "2s kill web-1"},
			events: []string{"1s web-2: fault: 1s kill web-2 for 2s", "2s web-1: fault: 2s kill web"},
		},
		"the primary of that moment": {
			file:   "- {at: 1s, do: kill, who: primary}\n- {at: 2s, do: kill, who: replica}",
			change: func(s *system) { s.setPrimary("db-3") },
			done:   []string{"1s kill db-3", "2s kill db-1"},
			events: []string{"1s db-3: fault: 1s kill primary", "2s db-1: fault: 2s kill replica"},
		},
		"a database without copies is the primary": {
			file: "- {at: 1s, do: kill, who: primary}",
			change: func(s *system) {
				s.nodes = s.nodes[:3]
				s.nodes[2].ReplicationRole = ""
			},
			done:   []string{"1s kill db-1"},
			events: []string{"1s db-1: fault: 1s kill primary"},
		},
		"restart says when it serves again": {
			file: "- {at: 1s, do: restart, who: web-1}\n- {at: 1100ms, do: kill, who: web}",
			done: []string{"1s kill web-1", "1.1s kill web-2"},
			events: []string{
				"1s web-1: fault: 1s restart web-1", "1.1s web-2: fault: 1.1s kill web",
				"1.31s web-1: fault: restart web-1: it serves again after 310ms",
			},
		},
		"no node of the role is serving": {
			file: "- {at: 1s, do: kill, who: primary}\n- {at: 2s, do: kill, who: lb}\n" +
				"- {at: 3s, do: kill, who: web-2}",
			change: func(s *system) { s.setPrimary("") },
			done:   []string{"3s kill web-2"},
			events: []string{
				"1s primary: fault: 1s kill primary: no primary is serving",
				"2s lb: fault: 2s kill lb: no lb is serving", "3s web-2: fault: 3s kill web-2",
			},
		},
		"the step ends before a fault": {
			file:   "- {at: 1s, do: kill, who: web-1}\n- {at: 2s, do: kill, who: web-2}",
			length: 1100 * time.Millisecond,
			done:   []string{"1s kill web-1"},
			events: []string{
				"1s web-1: fault: 1s kill web-1",
				"1.1s web-2: fault: 2s kill web-2: skipped, the step ended before",
			},
		},
		"the step ends before a restart": {
			file: "- {at: 1s, do: restart, who: web-1}", length: 1105 * time.Millisecond,
			done: []string{"1s kill web-1"},
			events: []string{
				"1s web-1: fault: 1s restart web-1",
				"1.105s web-1: fault: restart web-1: it did not serve again before the end of the step",
			},
		},
	} {
		t.Run(name, test.check)
	}
}

// While a node is paused by its role, later faults of that role mean the same node.
func TestPausedRole(t *testing.T) {
	for name, test := range map[string]scenario{
		"a pause hits the first node that serves, and the resume hits the same node": {
			file: "- {at: 1s, do: pause, who: replica}\n- {at: 2s, do: kill, who: primary}\n" +
				"- {at: 3s, do: resume, who: replica}\n- {at: 4s, do: kill, who: web}",
			done: []string{"1s pause db-2", "2s kill db-1", "3s resume db-2", "4s kill web-1"},
			events: []string{
				"1s db-2: fault: 1s pause replica", "2s db-1: fault: 2s kill primary",
				"3s db-2: fault: 3s resume replica", "4s web-1: fault: 4s kill web",
			},
		},
		"a paused primary that was killed and restarted is not paused": {
			file: "- {at: 1s, do: pause, who: primary}\n- {at: 2s, do: kill, who: primary}\n" +
				"- {at: 3s, do: kill, who: primary}\n- {at: 4s, do: resume, who: primary}",
			change: func(s *system) {
				time.AfterFunc(2500*time.Millisecond, func() {
					s.mu.Lock()
					defer s.mu.Unlock()
					s.setPrimary("db-2")
				})
			},
			done: []string{"1s pause db-1", "2s kill db-1", "3s kill db-2", "4s resume db-1"},
			events: []string{
				"1s db-1: fault: 1s pause primary", "2s db-1: fault: 2s kill primary",
				"3s db-2: fault: 3s kill primary", "4s db-1: fault: 4s resume primary",
			},
		},
	} {
		t.Run(name, test.check)
	}
}

// No text makes Read panic, and a schedule that it accepts can be printed and checked.
func FuzzRead(f *testing.F) {
	f.Add([]byte("- {at: 3s, do: pause, who: replica}\n- at: 4s\n  do: resume\n  who: replica\n"))
	f.Add([]byte("- &a {at: 1s, do: kill, who: web-1}\n- *a\n- <<: *a\n  at: 2s\n"))
	f.Add([]byte("- at: '1s\n"))
	f.Fuzz(func(t *testing.T, text []byte) {
		s, err := faults.Read(text, "f.yaml")
		if err != nil {
			return
		}
		if len(s.Texts()) == 0 {
			t.Errorf("%q is a schedule without faults", text)
		}
		_ = s.Check(sut.Topology{}, time.Minute) // any error
	})
}
