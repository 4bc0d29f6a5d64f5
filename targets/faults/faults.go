// Package faults injects faults into a target while it is measured. A file lists the
// faults with their times, and Run injects them.
//
//   - {at: 3s, do: kill, who: primary}
//   - {at: 6s, do: pause, who: replica}
//   - {at: 9s, do: resume, who: replica}
//   - {at: 12s, do: restart, who: web-2}
//
// at is the time since the start of the measured step. Each repeat of the step gets all
// faults. do is one of
//
//	kill     sends SIGKILL to all processes of the host or node; the supervisor
//	         restarts them, with for: 10s after 10 s at the earliest
//	pause    sends SIGSTOP: connections stay open and nothing answers
//	resume   continues a paused host or node
//	restart  is a kill, plus an event that says when it serves again
//
// who is the target: the name of a host or a node, or a role such as web or db, or the
// replication role primary or replica. A role means the first node that has this role and
// serves at that moment. A resume of a role resumes the node that the last pause of this
// role paused. A kill or a restart of a role hits that node while it is paused.
//
// Read and Schedule.Check are pure functions. This package does not know how a target
// executes a fault.
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

	"github.com/stagebench/stagebench/internal/nesting"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/targets"
)

// Verb is the kind of a fault.
type Verb string

// The verbs.
const (
	Kill    Verb = "kill"
	Pause   Verb = "pause"
	Resume  Verb = "resume"
	Restart Verb = "restart"
)

// verbs lists the verbs in the order of the package comment.
func verbs() []string {
	return []string{string(Kill), string(Pause), string(Resume), string(Restart)}
}

// Fault is one fault to inject.
type Fault struct {
	At     time.Duration // since the start of the measured step
	Do     Verb
	Target string        // name of a host or a node, a role, or a replication role
	For    time.Duration // of a kill: time until the restart; 0 = the usual time
}

func (f Fault) String() string {
	text := fmt.Sprintf("%v %s %s", f.At, f.Do, f.Target)
	if f.For > 0 {
		text += " for " + f.For.String()
	}
	return text
}

// Schedule is all faults of one step, ordered by time.
type Schedule []Fault

// Texts returns the faults as text, one per element, for the manifest.
func (s Schedule) Texts() []string {
	texts := []string{}
	for _, f := range s {
		texts = append(texts, f.String())
	}
	return texts
}

// maxFile bounds a file, in bytes.
const maxFile = 1 << 20

// entry is a fault as the file has it.
type entry struct {
	At  string `yaml:"at"`
	Do  string `yaml:"do"`
	Who string `yaml:"who"`
	For string `yaml:"for"`
}

// Read parses a file into a schedule. name is the name of the file. The error lists every
// problem with line and column, one problem per line.
func Read(text []byte, name string) (s Schedule, err error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes: want at most %d", name, len(text), maxFile)
	}
	if err := nesting.Check(text); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer func() {
		// The YAML library panics on some malformed input.
		if r := recover(); r != nil {
			s, err = nil, fmt.Errorf("%s: invalid YAML: %v", name, r)
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
		return nil, fmt.Errorf("%s: the file lists no faults\n"+
			"write a list, for example: - {at: 3s, do: kill, who: primary}", name)
	}
	var problems []string
	for i, e := range entries {
		fault, field, problem := e.fault()
		if problem != "" {
			problems = append(problems, fmt.Sprintf("%s:%s: %s", name, position(tree, i, field), problem))
		}
		s = append(s, fault)
	}
	if len(problems) > 0 {
		return nil, errors.New(strings.Join(problems, "\n"))
	}
	slices.SortStableFunc(s, func(a, b Fault) int { return int(a.At - b.At) })
	if err := s.checkResumes(); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return s, nil
}

// fault parses an entry. If a field is wrong, it returns the field's name and the problem.
func (e entry) fault() (f Fault, field, problem string) {
	at, err := time.ParseDuration(e.At)
	f = Fault{At: at, Do: Verb(e.Do), Target: e.Who}
	switch {
	case err != nil || at < 0:
		return f, "at", fmt.Sprintf("at %q: want the time since the start of the step, for example 3s", e.At)
	case !slices.Contains(verbs(), e.Do):
		return f, "do", fmt.Sprintf("do %q: want one of %s", e.Do, strings.Join(verbs(), ", "))
	case e.For != "" && f.Do != Kill:
		return f, "for", fmt.Sprintf("for %q: only a kill has it", e.For)
	case e.Who == "":
		return f, "who", "who is missing: want a host, a node, or a role: " + strings.Join(roles(), ", ")
	}
	if e.For != "" {
		if f.For, err = time.ParseDuration(e.For); err != nil || f.For <= 0 {
			return f, "for", fmt.Sprintf("for %q: want a time, for example 10s", e.For)
		}
	}
	return f, "", ""
}

// roles lists the roles and replication roles that a fault can name.
func roles() []string {
	var names []string
	for _, tier := range ladder.Tiers() {
		names = append(names, string(tier.Role))
	}
	return append(names, string(targets.Primary), string(targets.Replica))
}

// checkResumes returns an error if a resume has no earlier pause with the same name.
func (s Schedule) checkResumes() error {
	paused := map[string]bool{}
	for _, f := range s {
		switch f.Do {
		case Pause:
			paused[f.Target] = true
		case Resume:
			if !paused[f.Target] {
				return fmt.Errorf("resume %s at %v: no earlier fault pauses %s\nuse the same name as the pause",
					f.Target, f.At, f.Target)
			}
			paused[f.Target] = false
		}
	}
	return nil
}

// Check returns an error if a fault names nothing in the topology, or if its time is not
// within a step of this length.
func (s Schedule) Check(t sut.Topology, length time.Duration) error {
	for _, f := range s {
		if f.At >= length {
			return fmt.Errorf("%s %s at %v: the step ends after %v\nuse an earlier time or a longer step",
				f.Do, f.Target, f.At, length)
		}
		if !slices.Contains(names(t), f.Target) {
			return fmt.Errorf("%s %s: stage %s has no such host, node or role\nwant one of %s",
				f.Do, f.Target, t.Stage, strings.Join(names(t), ", "))
		}
	}
	return nil
}

// names lists the hosts, nodes and roles that a fault can name in a topology.
func names(t sut.Topology) []string {
	var all []string
	databases := 0
	for _, h := range t.Hosts {
		all = append(all, h.Name)
	}
	for _, n := range t.Nodes {
		all = append(all, n.Name, string(n.Role))
		if n.Role != sut.DB {
			continue
		}
		databases++
		if n.Shard > 0 {
			all = append(all, targets.Primary.InShard(n.Shard))
		}
		if n.Shard > 0 && n.Replicated {
			all = append(all, targets.Replica.InShard(n.Shard))
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

// position returns LINE:COLUMN of a field of entry i, or of the entry if it lacks the field.
func position(tree *ast.File, i int, field string) string {
	root := func() *yaml.PathBuilder { return (&yaml.PathBuilder{}).Root().Index(uint(i)) }
	for _, path := range []*yaml.Path{root().Child(field).Build(), root().Build()} {
		if node, err := path.FilterFile(tree); err == nil && node != nil && node.GetToken() != nil {
			return fmt.Sprintf("%d:%d", node.GetToken().Position.Line, node.GetToken().Position.Column)
		}
	}
	return "1:1"
}

// decodeError adds the position to an error of the YAML library.
func decodeError(name string, err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	p := at.GetToken().Position
	return fmt.Errorf("%s:%d:%d: %s\n"+
		"want a list of {at: TIME, do: VERB, who: NAME}, for example: - {at: 3s, do: kill, who: primary}",
		name, p.Line, p.Column, at.GetMessage())
}
