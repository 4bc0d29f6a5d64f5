package matrix

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/stagebench/stagebench/internal/nesting"
)

// maxFile bounds a file, in bytes.
const maxFile = 1 << 20

// document is a decoded file.
type document struct {
	Stages      list       `yaml:"stages"`
	Target      *service   `yaml:"target"`
	Targets     []service  `yaml:"targets"`
	Workloads   list       `yaml:"workloads"`
	Engines     list       `yaml:"engines"`
	Drivers     list       `yaml:"drivers"`
	Knobs       settings   `yaml:"knobs"`
	Rates       list       `yaml:"rates"`
	Repeats     scalar     `yaml:"repeats"`
	Include     []settings `yaml:"include"`
	Exclude     []settings `yaml:"exclude"`
	Set         settings   `yaml:"set"`
	Seed        scalar     `yaml:"seed"`
	Data        scalar     `yaml:"data"`
	SLO         scalar     `yaml:"slo"`
	Quick       scalar     `yaml:"quick"`
	Connections scalar     `yaml:"connections"`
	Reference   scalar     `yaml:"reference"`
	Duration    scalar     `yaml:"duration"`
	Tables      []table    `yaml:"tables"`
}

// service is an entry of targets.
type service struct {
	Name  scalar `yaml:"name"`
	URL   scalar `yaml:"url"`
	Up    scalar `yaml:"up"`
	Down  scalar `yaml:"down"`
	Ready scalar `yaml:"ready"`
	Wait  scalar `yaml:"wait"`
}

// table is an entry of tables.
type table struct {
	Rows    scalar `yaml:"rows"`
	Columns scalar `yaml:"columns"`
	Figure  scalar `yaml:"figure"`
}

// position is a place in a file, from 1.
type position struct{ line, column int }

func positionOf(node ast.Node) position {
	if t := node.GetToken(); t != nil && t.Position != nil {
		return position{t.Position.Line, t.Position.Column}
	}
	return position{1, 1}
}

// scalar is a text, number or boolean as it is written.
type scalar struct {
	text string
	at   position // line 0 = the file does not have it
}

func (s scalar) given() bool { return s.at.line > 0 }

// UnmarshalYAML takes the text of a node.
func (s *scalar) UnmarshalYAML(node ast.Node) error {
	s.at = positionOf(node)
	switch n := node.(type) {
	case *ast.AnchorNode:
		return s.UnmarshalYAML(n.Value)
	case *ast.TagNode:
		return s.UnmarshalYAML(n.Value)
	case *ast.LiteralNode:
		s.text = n.Value.Value
	case *ast.StringNode:
		s.text = n.Value
	case *ast.IntegerNode, *ast.FloatNode, *ast.BoolNode, *ast.InfinityNode, *ast.NanNode:
		s.text = n.GetToken().Value
	case *ast.NullNode:
		return problem{s.at, "no value: want a text or a number"}
	case *ast.AliasNode:
		return problem{s.at, "an alias: write the value itself"}
	default:
		return problem{s.at, "want one text or number, but got " + kindOf(node)}
	}
	return nil
}

// list is one value or a list of them.
type list []scalar

// UnmarshalYAML takes the values of a node.
func (l *list) UnmarshalYAML(node ast.Node) error {
	if n, anchored := node.(*ast.AnchorNode); anchored {
		node = n.Value
	}
	sequence, is := node.(*ast.SequenceNode)
	if !is {
		var one scalar
		err := one.UnmarshalYAML(node)
		*l = list{one}
		return err
	}
	if len(sequence.Values) == 0 {
		return problem{positionOf(node), "an empty list: want at least one value"}
	}
	for _, value := range sequence.Values {
		var one scalar
		if err := one.UnmarshalYAML(value); err != nil {
			return err
		}
		*l = append(*l, one)
	}
	return nil
}

// settings is a mapping from names to values, in the order of the file.
type settings struct {
	at      position
	entries []entry
}

type entry struct {
	name   scalar
	values list
}

// UnmarshalYAML takes the entries of a node.
func (s *settings) UnmarshalYAML(node ast.Node) error {
	if n, anchored := node.(*ast.AnchorNode); anchored {
		node = n.Value
	}
	mapping, is := node.(ast.MapNode)
	if !is {
		return problem{positionOf(node), "want a mapping such as {web.hosts: 2}, but got " + kindOf(node)}
	}
	s.at = positionOf(node)
	for i := mapping.MapRange(); i.Next(); {
		e := entry{name: scalar{text: i.Key().GetToken().Value, at: positionOf(i.Key())}}
		if len(s.entries) == 0 {
			s.at = e.name.at
		}
		if slices.ContainsFunc(s.entries, func(o entry) bool { return o.name.text == e.name.text }) {
			return problem{e.name.at, e.name.text + " is given twice: list its values once"}
		}
		if err := e.values.UnmarshalYAML(i.Value()); err != nil {
			return err
		}
		s.entries = append(s.entries, e)
	}
	return nil
}

// kindOf returns what a user calls a node.
func kindOf(node ast.Node) string {
	switch node.(type) {
	case *ast.SequenceNode:
		return "a list"
	case ast.MapNode:
		return "a mapping"
	case *ast.NullNode:
		return "nothing"
	case *ast.AliasNode:
		return "an alias"
	}
	return fmt.Sprintf("%q", node.String())
}

// problem is an error in a file.
type problem struct {
	at   position
	text string
}

func (p problem) Error() string { return p.text }

// decode decodes a file. The result of an error has line and column.
func decode(text []byte, name string) (d document, err error) {
	if len(text) > maxFile {
		return d, fmt.Errorf("%s: %d bytes: want at most %d", name, len(text), maxFile)
	}
	if err := nesting.Check(text); err != nil {
		return d, fmt.Errorf("%s: %w", name, err)
	}
	defer func() {
		// The YAML library panics on some malformed texts.
		if r := recover(); r != nil {
			err = fmt.Errorf("%s: invalid YAML: %v", name, r)
		}
	}()
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return d, decodeError(name, err)
	}
	if len(tree.Docs) == 0 || tree.Docs[0].Body == nil {
		return d, fmt.Errorf("%s: the file is empty\nwrite at least: stages: [single, lb]", name)
	}
	if len(tree.Docs) > 1 {
		return d, fmt.Errorf("%s: %d documents: want one, without lines of three dashes", name, len(tree.Docs))
	}
	if err := yaml.NodeToValue(tree.Docs[0].Body, &d, yaml.Strict()); err != nil {
		return d, decodeError(name, err)
	}
	return d, nil
}

// decodeError adds the position to an error of decoding.
func decodeError(name string, err error) error {
	if p, own := errors.AsType[problem](err); own {
		return problems{name, []problem{p}}.error()
	}
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	p := at.GetToken().Position
	message := at.GetMessage()
	if _, unknown := errors.AsType[*yaml.UnknownFieldError](err); unknown {
		message += "\nsee: stagebench matrix --help"
	}
	return fmt.Errorf("%s:%d:%d: %s", name, p.Line, p.Column, message)
}

// problems are the errors in a file.
type problems struct {
	name string
	all  []problem
}

func (p *problems) add(at position, format string, args ...any) {
	if at.line == 0 {
		at = position{1, 1}
	}
	p.all = append(p.all, problem{at, fmt.Sprintf(format, args...)})
}

// error lists the problems in the order of the file, nil if there are none.
func (p problems) error() error {
	if len(p.all) == 0 {
		return nil
	}
	slices.SortStableFunc(p.all, func(a, b problem) int {
		return cmp.Or(a.at.line-b.at.line, a.at.column-b.at.column)
	})
	var texts []string
	for _, one := range p.all {
		texts = append(texts, fmt.Sprintf("%s:%d:%d: %s", p.name, one.at.line, one.at.column, one.text))
	}
	return errors.New(strings.Join(texts, "\n"))
}
