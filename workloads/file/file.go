// Package file reads workloads that people write: a YAML file of weighted ops,
// with keys in paths and bodies and checks on the responses, for any HTTP
// service.
//
//	name: shop                      # default: the file's name
//	users: 100                      # virtual users, each with cookies of its own; default 0
//	login: {method: POST, path: /login, body: '{"user": "u{user}"}'}
//	header: {Accept: application/json}
//	keys:
//	  item: {kind: zipfian, theta: 0.99, from: 1, to: 10000, scramble: true}
//	  page: {kind: uniform, from: 1, to: 9}
//	  order: {kind: sequence, from: 1}
//	  colour: {kind: choice, values: [red, green]}
//	ops:
//	  - class: browse
//	    weight: 80                  # weights need not sum to anything
//	    path: /items/{item}?page={page}
//	    check: {status: [200, 304], contains: ['"price"']}
//	  - class: buy
//	    weight: 20
//	    method: POST
//	    path: /cart
//	    header: {Content-Type: application/json}
//	    body: '{"item": {item}, "colour": "{colour}"}'
//
// In a path, a body or the value of a header, {key} stands for the op's draw of
// that key, {user} for the number of its virtual user and {n} for its own number;
// {{key}} stands for the text {key} itself. Any other brace means nothing. A key
// has one value in the whole op. In paths values are percent-encoded.
//
// Decoding is strict, and what is wrong is told with line and column. The
// workload that comes of it is pure in (file, seed, n) and safe for concurrent
// use; nothing here sends anything.
package file

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path"
	"slices"
	"strings"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/stagebench/stagebench/workloads"
)

// maxFile bounds a workload file, and each file that it names, in bytes.
const maxFile = 4 << 20

// document is a workload file as it is written.
type document struct {
	Name   string            `yaml:"name"`
	Users  int               `yaml:"users"`
	Login  *operation        `yaml:"login"`
	Header map[string]string `yaml:"header"`
	Keys   map[string]source `yaml:"keys"`
	Ops    []operation       `yaml:"ops"`
}

// operation is one kind of op as it is written.
type operation struct {
	Class    string            `yaml:"class"`
	Weight   *float64          `yaml:"weight"`
	Method   string            `yaml:"method"`
	Path     string            `yaml:"path"`
	Header   map[string]string `yaml:"header"`
	Body     string            `yaml:"body"`
	BodyFile string            `yaml:"body_file"` // relative to the workload file
	BodyRate float64           `yaml:"body_rate"` // bytes per second of a slow client
	Write    *bool             `yaml:"write"`     // default: by the method
	Check    *check            `yaml:"check"`
}

// check is what a response has to be like, as it is written.
type check struct {
	Status   []int             `yaml:"status"`
	Header   map[string]string `yaml:"header"`
	Contains []string          `yaml:"contains"`
	Matches  []string          `yaml:"matches"`
	MinBytes int64             `yaml:"min_bytes"`
	MaxBytes int64             `yaml:"max_bytes"`
}

// Read returns the workload that a file describes. Name is the file's, for
// errors; files is the directory in which it lies. The error names every problem
// by line and column, one per line. A workload with a login also implements
// workloads.Login.
func Read(text []byte, name string, files fs.FS, seed uint64) (w workloads.Workload, err error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes: want at most %d", name, len(text), maxFile)
	}
	defer func() {
		// The library is known to panic on some malformed texts.
		if r := recover(); r != nil {
			w, err = nil, fmt.Errorf("%s: it is no YAML that can be read: %v", name, r)
		}
	}()
	var d document
	if err := yaml.UnmarshalWithOptions(text, &d, yaml.Strict()); err != nil {
		return nil, decodeError(name, err)
	}
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, decodeError(name, err)
	}
	r := &reader{name: name, tree: tree, files: files, lines: strings.Split(string(text), "\n")}
	built := r.workload(d, seed)
	if len(r.problems) > 0 {
		return nil, r.error()
	}
	if built.login == nil {
		return struct{ anonymous }{built}, nil // without LoginOp
	}
	return built, nil
}

// anonymous is a workload whose users have no session.
type anonymous interface {
	workloads.Workload
	Classes() []workloads.Class
}

// decodeError says where the text is no workload file.
func decodeError(name string, err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	p := at.GetToken().Position
	message := at.GetMessage()
	var unknown *yaml.UnknownFieldError
	if errors.As(err, &unknown) {
		message += "\nsee: go doc github.com/stagebench/stagebench/workloads/file"
	}
	return fmt.Errorf("%s:%d:%d: %s", name, p.Line, p.Column, message)
}

// place is where in the document something is.
type place []any // names of fields and positions in lists

func (p place) in(steps ...any) place { return append(slices.Clone(p), steps...) }

// problem is something that cannot be, and where.
type problem struct {
	line, column int
	text         string
}

// reader turns a document into a workload and collects what is wrong with it.
type reader struct {
	name     string
	tree     *ast.File
	files    fs.FS
	lines    []string
	problems []problem
}

// wrong notes a problem at a place, or at what is nearest above it.
func (r *reader) wrong(at place, format string, args ...any) {
	p := problem{line: 1, column: 1, text: fmt.Sprintf(format, args...)}
	for ; len(at) > 0; at = at[:len(at)-1] {
		if node := r.find(at); node != nil && node.GetToken() != nil {
			p.line, p.column = node.GetToken().Position.Line, node.GetToken().Position.Column
			break
		}
	}
	r.problems = append(r.problems, p)
}

func (r *reader) find(at place) ast.Node {
	b := (&yaml.PathBuilder{}).Root()
	for _, step := range at {
		switch s := step.(type) {
		case string:
			b = b.Child(s)
		case int:
			b = b.Index(uint(s))
		}
	}
	node, err := b.Build().FilterFile(r.tree)
	if err != nil {
		return nil
	}
	return node
}

// error lists the problems in the order of the file, each with its line.
func (r *reader) error() error {
	slices.SortStableFunc(r.problems, func(a, b problem) int {
		return cmp.Or(a.line-b.line, a.column-b.column)
	})
	var texts []string
	for _, p := range r.problems {
		text := fmt.Sprintf("%s:%d:%d: %s", r.name, p.line, p.column, p.text)
		if p.line <= len(r.lines) {
			text += "\n    " + strings.TrimSpace(r.lines[p.line-1])
		}
		texts = append(texts, text)
	}
	return errors.New(strings.Join(texts, "\n"))
}

// workload builds what the document describes; it is of use when no problem was
// noted.
func (r *reader) workload(d document, seed uint64) *workload {
	w := &workload{name: d.Name, users: d.Users, seed: seed}
	if w.name == "" {
		w.name = strings.TrimSuffix(path.Base(strings.ReplaceAll(r.name, "\\", "/")), path.Ext(r.name))
	}
	if strings.ContainsAny(w.name, "/\\\n") || w.name == "." || w.name == ".." {
		r.wrong(place{"name"}, "name %q: want a name that can be one of a directory", w.name)
	}
	const most = 1_000_000
	if d.Users < 0 || d.Users > most {
		r.wrong(place{"users"}, "users %d: want 0 to %d", d.Users, most)
	}
	names := slices.Sorted(maps.Keys(d.Keys)) // the order of streams does not depend on that of a map
	for i, name := range names {
		w.keys = append(w.keys, r.key(name, d.Keys[name], seed, streamKeys+uint64(i)))
	}
	if len(d.Ops) == 0 {
		r.wrong(place{"ops"}, "no ops: want at least one, with class, weight and path")
	}
	var sum float64
	seen := map[string]bool{}
	for i, o := range d.Ops {
		at := place{"ops", i}
		switch {
		case o.Weight == nil && len(d.Ops) == 1:
			sum++
		case o.Weight == nil:
			r.wrong(at, "op %s has no weight: want how often it is asked for, against the others", o.Class)
		case !(*o.Weight > 0) || math.IsInf(*o.Weight, 0): // so written that NaN is refused too
			r.wrong(at.in("weight"), "weight %v: want more than 0, or leave the op out", *o.Weight)
		default:
			sum += *o.Weight
		}
		if seen[o.Class] {
			r.wrong(at.in("class"), "class %s is there twice: want another name", o.Class)
		}
		seen[o.Class] = true
		w.upTo = append(w.upTo, sum)
		w.ops = append(w.ops, r.template(at, o, d.Header, names))
	}
	if d.Login != nil {
		r.login(w, *d.Login, d, names)
	}
	return w
}

// login adds the op by which a virtual user starts a session.
func (r *reader) login(w *workload, o operation, d document, names []string) {
	at := place{"login"}
	if o.Class != "" && o.Class != string(loginClass) || o.Weight != nil {
		r.wrong(at, "the login's class is %s, and it has no weight: it happens when a user needs it", loginClass)
	}
	if d.Users == 0 {
		r.wrong(at, "a login without users: want users: 1 or more")
	}
	o.Class = string(loginClass)
	op := r.template(at, o, d.Header, names)
	w.login = &op
}

// loginClass is the class of the op by which a virtual user starts a session.
const loginClass workloads.Class = "login"
