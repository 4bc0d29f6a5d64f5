// Package faults is what is done to a target while it is measured: a file says
// when what happens to whom, and Run does it.
//
//   - {at: 3s, do: kill, who: primary}
//   - {at: 6s, do: pause, who: replica}
//   - {at: 9s, do: resume, who: replica}
//   - {at: 12s, do: restart, who: web-2}
//
// At is the time since the start of the measured step, of each repeat. Do is one
// of
//
//	kill     SIGKILL to everything of it; supervision starts it again, as it does
//	         with whatever dies
//	pause    SIGSTOP: connections stay open and nothing answers
//	resume   lets what a pause stopped go on
//	restart  kill, and an event that says when it served again
//
// Who is a host or a node by its name, or a role, which means the first node of
// that role that serves at that moment: lb, web, cache, db, blob, and of the
// databases primary and replica. A resume of a role goes to the node that the last
// pause of that role stopped, and so does a kill or a restart while it is paused.
//
// Read and Schedule.Check are pure. Nothing here knows how a target does what it
// is asked to.
package faults

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
)

// Verb is what is done.
type Verb string

// The verbs.
const (
	Kill    Verb = "kill"
	Pause   Verb = "pause"
	Resume  Verb = "resume"
	Restart Verb = "restart"
)

// verbs lists the verbs as they are explained.
func verbs() []string {
	return []string{string(Kill), string(Pause), string(Resume), string(Restart)}
}

// Fault is one thing that is done.
type Fault struct {
	At  time.Duration // since the start of the measured step
	Do  Verb
	Who string // a host, a node, a role, or a database's standing
}

func (f Fault) String() string { return fmt.Sprintf("%v %s %s", f.At, f.Do, f.Who) }

// Schedule is all that is done in a step, in the order of its times.
type Schedule []Fault

// Texts lists the faults for a manifest.
func (s Schedule) Texts() []string {
	texts := []string{}
	for _, f := range s {
		texts = append(texts, f.String())
	}
	return texts
}

// maxFile bounds a file, in bytes.
const maxFile = 1 << 20

// entry is a fault as it is written.
type entry struct {
	At  string `yaml:"at"`
	Do  string `yaml:"do"`
	Who string `yaml:"who"`
}

// Read returns the schedule that a file describes. Name is the file's, for
// errors, which name every problem by line and column, one per line.
func Read(text []byte, name string) (s Schedule, err error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes: want at most %d", name, len(text), maxFile)
	}
	defer func() {
		// The library is known to panic on some malformed texts.
		if r := recover(); r != nil {
			s, err = nil, fmt.Errorf("%s: it is no YAML that can be read: %v", name, r)
		}
	}()
	var entries []entry
	if err := yaml.UnmarshalWithOptions(text, &entries, yaml.Strict()); err != nil {
		return nil, decodeError(name, err)
	}
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, decodeError(name, err)
	}
	if len(entries) == 0 {
		return nil, fmt.Errorf("%s: no fault in it\nwant a list, for example: - {at: 3s, do: kill, who: primary}", name)
	}
	var problems []string
	for i, e := range entries {
		fault, field, problem := e.fault()
		if problem != "" {
			problems = append(problems, fmt.Sprintf("%s:%s: %s", name, place(tree, i, field), problem))
		}
		s = append(s, fault)
	}
	if len(problems) > 0 {
		return nil, errors.New(strings.Join(problems, "\n"))
	}
	slices.SortStableFunc(s, func(a, b Fault) int { return int(a.At - b.At) })
	if err := s.order(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// fault reads an entry, or says which field of it is wrong.
func (e entry) fault() (f Fault, field, problem string) {
	at, err := time.ParseDuration(e.At)
	f = Fault{At: at, Do: Verb(e.Do), Who: e.Who}
	switch {
	case err != nil || at < 0:
		return f, "at", fmt.Sprintf("at %q: want the time since the start of the step, for example 3s", e.At)
	case !slices.Contains(verbs(), e.Do):
		return f, "do", fmt.Sprintf("do %q: want one of %s", e.Do, strings.Join(verbs(), ", "))
	case e.Who == "":
		return f, "who", "who is missing: want a host, a node, or a role: " + strings.Join(roles(), ", ")
	}
	return f, "", ""
}

// roles lists the roles that a fault can name, and the standings of a database.
func roles() []string {
	var names []string
	for _, tier := range ladder.Tiers() {
		names = append(names, string(tier.Role))
	}
	return append(names, string(targets.Primary), string(targets.Replica))
}

// order finds what cannot come after what was before.
func (s Schedule) order() error {
	paused := map[string]bool{}
	for _, f := range s {
		switch f.Do {
		case Pause:
			paused[f.Who] = true
		case Resume:
			if !paused[f.Who] {
				return fmt.Errorf("resume %s at %v: nothing has paused it by then\nname it as the pause does", f.Who, f.At)
			}
			paused[f.Who] = false
		}
	}
	return nil
}

// Check says what of a schedule cannot be done to a topology within a step of
// that length.
func (s Schedule) Check(t sut.Topology, length time.Duration) error {
	for _, f := range s {
		if f.At >= length {
			return fmt.Errorf("%s %s at %v: the step is over after %v", f.Do, f.Who, f.At, length)
		}
		if !slices.Contains(names(t), f.Who) {
			return fmt.Errorf("%s %s: stage %s has no such host, node or role\nwant one of %s", f.Do, f.Who, t.Stage, strings.Join(names(t), ", "))
		}
	}
	return nil
}

// names lists whom a fault can mean.
func names(t sut.Topology) []string {
	var all []string
	databases := 0
	for _, h := range t.Hosts {
		all = append(all, h.Name)
	}
	for _, n := range t.Nodes {
		all = append(all, n.Name, string(n.Role))
		if n.Role == sut.DB {
			databases++
		}
	}
	if databases > 0 {
		all = append(all, string(targets.Primary))
	}
	if databases > 1 {
		all = append(all, string(targets.Replica))
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// place is the line and column of a field, or of what is nearest above it.
func place(tree *ast.File, i int, field string) string {
	root := func() *yaml.PathBuilder { return (&yaml.PathBuilder{}).Root().Index(uint(i)) }
	for _, path := range []*yaml.Path{root().Child(field).Build(), root().Build()} {
		if node, err := path.FilterFile(tree); err == nil && node != nil && node.GetToken() != nil {
			return fmt.Sprintf("%d:%d", node.GetToken().Position.Line, node.GetToken().Position.Column)
		}
	}
	return "1:1"
}

// decodeError says where the text is no list of faults.
func decodeError(name string, err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	p := at.GetToken().Position
	return fmt.Errorf("%s:%d:%d: %s\nwant a list of {at: TIME, do: VERB, who: NAME}, for example: - {at: 3s, do: kill, who: primary}", name, p.Line, p.Column, at.GetMessage())
}
