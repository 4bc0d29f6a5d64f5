// Package file reads workload files. A workload file is YAML and describes the load
// for any HTTP service: weighted ops, with keys in their paths and bodies, and checks
// on the responses.
//
//	name: shop                      # default: the file's name
//	users: 100                      # virtual users, each with its own cookies; default 0
//	phases:                         # rates in requests per second; default: those of the command
//	  - {for: 30s, rate: 50}
//	  - {for: 1m, rate: 50, to: 400}    # moves linearly
//	login: {method: POST, path: /login, body: '{"user": "u{user}"}'}
//	header: {Accept: application/json}
//	keys:
//	  item: {kind: zipfian, theta: 0.99, from: 1, to: 10000, scramble: true}
//	  news: {kind: latest, theta: 0.99, from: 1, to: 500}
//	  offer: {kind: hotspot, hot_keys: 0.2, hot_ops: 0.8, from: 1, to: 1000}
//	  page: {kind: uniform, from: 1, to: 9}
//	  order: {kind: sequence, from: 1}
//	  colour: {kind: choice, values: [red, green]}
//	ops:
//	  - class: browse
//	    weight: 80                  # relative to the other weights; any sum is allowed
//	    path: /items/{item}?page={page}
//	    check: {status: [200, 304], contains: ['"price"']}
//	  - class: buy
//	    weight: 20
//	    method: POST
//	    path: /cart
//	    header: {Content-Type: application/json}
//	    body: '{"item": {item}, "colour": "{colour}"}'
//
// References in a path, a body or a header value are replaced: {key} by the op's value
// of that key, {user} by the number of its virtual user, {n} by the number of the op.
// {{key}} gives the literal text {key}. Any other brace is literal. A key has the same
// value everywhere in one op. Paths are percent-encoded where necessary, and values in them always.
//
// The kinds of keys follow YCSB (Cooper et al., SoCC 2010), and the values above are the defaults:
//   - zipfian: from is the hottest value. With scramble, the hot values are spread over the range.
//   - latest: to is the hottest value, as the newest record, and older ones are colder by a zipfian distribution. The
//     range is fixed: values that ops of the workload insert are not in it.
//   - hotspot: the fraction hot_ops of the draws has one of the first values, and hot_keys says which fraction of the
//     values that is. All hot values are equally likely, and so are all others.
//   - uniform: all values are equally likely.
//   - sequence: op n has from + n. With to, the values start again after it.
//   - choice: one of the values that are listed, all equally likely.
//
// With phases, the arrivals are those of independent users at the rates of the phases, one after the other. A rate that
// the command is given replaces them.
//
// A text is taken as it is written: the header X-Version: 1.10 is sent as 1.10, without quotes as with them.
//
// Decoding is strict. Errors give line and column. The workload is a pure function of
// (file, seed, n) and safe for concurrent use. This package sends no requests.
package file

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math"
	"path"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"

	"github.com/stagebench/stagebench/internal/nesting"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
)

// maxFile is the maximum size in bytes of a workload file and of each body file.
const maxFile = 4 << 20

// document is a decoded workload file.
type document struct {
	Name   string            `yaml:"name"`
	Users  int               `yaml:"users"`
	Phases []phase           `yaml:"phases"`
	Login  *operation        `yaml:"login"`
	Header map[string]string `yaml:"header"`
	Keys   map[string]source `yaml:"keys"`
	Ops    []operation       `yaml:"ops"`
}

// operation is one entry of ops as the file declares it.
type operation struct {
	Class    string            `yaml:"class"`
	Weight   *float64          `yaml:"weight"`
	Method   string            `yaml:"method"`
	Path     string            `yaml:"path"`
	Header   map[string]string `yaml:"header"`
	Body     string            `yaml:"body"`
	BodyFile string            `yaml:"body_file"` // relative to the workload file
	BodyRate float64           `yaml:"body_rate"` // upload rate of a slow client, bytes per second
	Write    *bool             `yaml:"write"`     // default: derived from the method
	Check    *check            `yaml:"check"`
}

// phase is one entry of phases as the file declares it.
type phase struct {
	For  string   `yaml:"for"`
	Rate float64  `yaml:"rate"`
	To   *float64 `yaml:"to"`
}

// check lists the conditions for a response as the file declares them.
type check struct {
	Status   []int             `yaml:"status"`
	Header   map[string]string `yaml:"header"`
	Contains []string          `yaml:"contains"`
	Matches  []string          `yaml:"matches"`
	MinBytes int64             `yaml:"min_bytes"`
	MaxBytes int64             `yaml:"max_bytes"`
}

// Read returns the workload that a file describes. Name is the file name for error
// messages. Files is the directory of the file. The error lists every problem with
// line and column. A workload with a login also implements workloads.Login.
func Read(text []byte, name string, files fs.FS, seed uint64) (w workloads.Workload, err error) {
	if len(text) > maxFile {
		return nil, fmt.Errorf("%s: %d bytes: want at most %d", name, len(text), maxFile)
	}
	if err := nesting.Check(text); err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	defer func() {
		// The YAML library panics on some malformed texts.
		if r := recover(); r != nil {
			w, err = nil, fmt.Errorf("%s: invalid YAML: %v", name, r)
		}
	}()
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, decodeError(name, err)
	}
	var d document
	if err := decode(tree, &d); err != nil {
		return nil, decodeError(name, err)
	}
	r := &reader{name: name, tree: tree, files: files, lines: strings.Split(string(text), "\n")}
	built := r.workload(d, seed)
	if len(r.problems) > 0 {
		return nil, r.error()
	}
	if built.login == nil {
		return struct{ anonymous }{built}, nil // hides LoginOp
	}
	return built, nil
}

// anonymous is a workload whose users have no sessions.
type anonymous interface {
	workloads.Workload
	Classes() []workloads.Class
	Phases() []pace.Phase
}

// decodeError adds the position of the problem to a YAML error.
func decodeError(name string, err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	p := at.GetToken().Position
	message := at.GetMessage()
	var unknown *yaml.UnknownFieldError
	var wrong *yaml.TypeError
	switch {
	case errors.As(err, &unknown):
		message += "\nsee: go doc github.com/stagebench/stagebench/workloads/file"
	case errors.As(err, &wrong):
		message = fmt.Sprintf("want %s, but got %s", kindName(wrong.DstType), kindName(wrong.SrcType))
	}
	return fmt.Errorf("%s:%d:%d: %s", name, p.Line, p.Column, message)
}

// kindName returns what a YAML file calls a type.
func kindName(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return kindName(t.Elem())
	case reflect.Bool:
		return "true or false"
	case reflect.String:
		return "a text"
	case reflect.Slice:
		return "a list"
	case reflect.Map, reflect.Struct:
		return "a mapping"
	case reflect.Float32, reflect.Float64:
		return "a number"
	default:
		return "a whole number"
	}
}

// place is a path into the document: field names and list indexes.
type place []any

func (p place) in(steps ...any) place { return append(slices.Clone(p), steps...) }

// problem is one error in the file and its position.
type problem struct {
	line, column int
	text         string
}

// reader builds a workload from a document and collects the problems.
type reader struct {
	name     string
	tree     *ast.File
	files    fs.FS
	lines    []string
	problems []problem
}

// wrong records a problem at a place, or at its nearest existing parent.
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

// error lists the problems in file order. Each problem shows its source line.
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

// workload builds the workload of the document. The result is usable only if no problem
// was recorded.
func (r *reader) workload(d document, seed uint64) *workload {
	w := &workload{name: d.Name, users: d.Users, seed: seed}
	if w.name == "" {
		w.name = strings.TrimSuffix(path.Base(strings.ReplaceAll(r.name, "\\", "/")), path.Ext(r.name))
	}
	if strings.ContainsAny(w.name, "/\\\n") || w.name == "." || w.name == ".." {
		r.wrong(place{"name"}, "name %q: want a name that is valid as a directory name", w.name)
	}
	const most = 1_000_000
	if d.Users < 0 || d.Users > most {
		r.wrong(place{"users"}, "users %d: want 0 to %d", d.Users, most)
	}
	r.phases(w, d.Phases)
	names := slices.Sorted(maps.Keys(d.Keys)) // sorted: a key must get the same stream in every run
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
			r.wrong(at, "op %s has no weight: want its share of all ops, relative to the other weights", o.Class)
		case !(*o.Weight > 0) || math.IsInf(*o.Weight, 0): // not "<= 0", which would accept NaN
			r.wrong(at.in("weight"), "weight %v: want more than 0, or leave the op out", *o.Weight)
		default:
			sum += *o.Weight
		}
		if seen[o.Class] {
			r.wrong(at.in("class"), "class %s is used twice: want a unique class per op", o.Class)
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

// phases sets the phases of the workload.
func (r *reader) phases(w *workload, phases []phase) {
	most := 0.0
	for i, p := range phases {
		at := place{"phases", i}
		length, err := time.ParseDuration(p.For)
		if err != nil || length < pace.ShortestTime {
			r.wrong(at.in("for"), "for %q: want the length of the phase, such as 30s", p.For)
		}
		to := either(p.To, p.Rate)
		if !(min(p.Rate, to) >= 0 && max(p.Rate, to) <= pace.MaxRate) { // the negated form refuses NaN
			r.wrong(at, "rate %v to %v: want 0 to %d requests per second", p.Rate, to, int(pace.MaxRate))
		}
		most = max(most, p.Rate, to)
		w.phases = append(w.phases, pace.Phase{Length: length, From: p.Rate, To: to})
	}
	if len(phases) > 0 && most < pace.MinRate {
		r.wrong(place{"phases"}, "the rates of all phases are 0: want one of at least %v requests per second", pace.MinRate)
	}
}

// login adds the op that starts a user's session.
func (r *reader) login(w *workload, o operation, d document, names []string) {
	at := place{"login"}
	if o.Class != "" && o.Class != string(loginClass) || o.Weight != nil {
		r.wrong(at, "login must not set weight or a class other than %s: it is sent when a user needs a session",
			loginClass)
	}
	if d.Users == 0 {
		r.wrong(at, "login without users: set users to 1 or more")
	}
	o.Class = string(loginClass)
	op := r.template(at, o, d.Header, names)
	w.login = &op
}

// loginClass is the class of login ops.
const loginClass workloads.Class = "login"
