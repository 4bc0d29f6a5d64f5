package file

import (
	"errors"
	"io/fs"
	"math"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/net/http/httpguts"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/keys"
)

// source is a key as the file declares it.
type source struct {
	Kind     string   `yaml:"kind"` // one of kinds()
	Theta    *float64 `yaml:"theta"`
	HotKeys  *float64 `yaml:"hot_keys"` // fraction of the keys that are hot
	HotOps   *float64 `yaml:"hot_ops"`  // fraction of the ops that have a hot key
	From     *int     `yaml:"from"`
	To       *int     `yaml:"to"`
	Scramble bool     `yaml:"scramble"` // the hot keys are spread over the range instead of being its first keys
	Values   []string `yaml:"values"`
}

// The kinds of keys.
const (
	zipfian  = "zipfian"
	latest   = "latest"
	hotspot  = "hotspot"
	uniform  = "uniform"
	sequence = "sequence"
	choice   = "choice"
)

func kinds() []string { return []string{zipfian, latest, hotspot, uniform, sequence, choice} }

// The defaults of YCSB: the exponent of zipfian and latest, and the fractions of hotspot.
const (
	defaultTheta   = 0.99
	defaultHotKeys = 0.2
	defaultHotOps  = 0.8
)

// keyName matches a valid key name. inBraces matches a reference {name} and its
// escaped form {{name}}.
var (
	keyName  = regexp.MustCompile(`^[a-z][a-z0-9_-]*$`)
	inBraces = regexp.MustCompile(`\{\{[a-z][a-z0-9_-]*\}\}|\{[a-z][a-z0-9_-]*\}`)
)

// key builds the key that s declares.
func (r *reader) key(name string, s source, seed, stream uint64) key {
	at := place{"keys", name}
	k := key{values: s.Values, stream: stream, from: 1}
	if !keyName.MatchString(name) || name == "user" || name == "n" {
		r.wrong(at, "key %q: want a name of lower-case letters, digits, _ and -; user and n are reserved", name)
	}
	if s.From != nil {
		k.from = *s.From
	}
	count := len(s.Values)
	switch {
	case s.Kind == choice:
		if count == 0 || s.From != nil || s.To != nil {
			r.wrong(at, "key %s: kind: choice needs values, without from and to", name)
			return k
		}
	case len(s.Values) > 0:
		r.wrong(at.in("values"), "key %s: values are only for kind: choice", name)
	case s.To == nil && s.Kind == sequence:
		count = math.MaxInt32
	case s.To == nil || *s.To < k.from || *s.To-k.from < 0:
		r.wrong(at, "key %s: want from and to, with to >= from", name)
		return k
	default:
		count = *s.To - k.from + 1
	}
	r.extras(at, name, s)
	var err error
	switch s.Kind {
	case zipfian:
		var ranks keys.Zipfian
		if ranks, err = keys.NewZipfian(count, either(s.Theta, defaultTheta)); err == nil {
			k.pick = ranks.Key
			if s.Scramble {
				k.pick = keys.NewScrambled(ranks, workloads.Draw(seed, stream, streamOrder)).Key
			}
		}
	case latest:
		var ages keys.Zipfian
		ages, err = keys.NewZipfian(count, either(s.Theta, defaultTheta))
		k.pick = keys.NewLatest(ages).Key
	case hotspot:
		k.pick, err = r.hotspot(at, name, s, count)
	case uniform, choice:
		var all keys.Uniform
		all, err = keys.NewUniform(count)
		k.pick = all.Key
	case sequence:
		k.cycle = uint64(count)
	default:
		all := kinds()
		last := len(all) - 1
		r.wrong(at.in("kind"), "key %s: kind %q: want %s or %s", name, s.Kind, strings.Join(all[:last], ", "), all[last])
	}
	if err != nil {
		r.wrong(at, "key %s: %v", name, err)
	}
	return k
}

// extras checks the fields that only some kinds of key have.
func (r *reader) extras(at place, name string, s source) {
	if s.Scramble && s.Kind != zipfian {
		r.wrong(at.in("scramble"), "key %s: scramble is only for kind: zipfian", name)
	}
	if s.Theta != nil && s.Kind != zipfian && s.Kind != latest {
		r.wrong(at.in("theta"), "key %s: theta is only for kind: zipfian or latest", name)
	}
	if s.HotKeys != nil && s.Kind != hotspot {
		r.wrong(at.in("hot_keys"), "key %s: hot_keys is only for kind: hotspot", name)
	}
	if s.HotOps != nil && s.Kind != hotspot {
		r.wrong(at.in("hot_ops"), "key %s: hot_ops is only for kind: hotspot", name)
	}
}

// hotspot builds a distribution in which at least one key is hot, and at least one of several is not.
func (r *reader) hotspot(at place, name string, s source, count int) (func(random uint64) int, error) {
	hotKeys, hotOps := either(s.HotKeys, defaultHotKeys), either(s.HotOps, defaultHotOps)
	const want = "want a fraction between 0 and 1, for example"
	if !(hotKeys > 0 && hotKeys < 1) { // the negated form refuses NaN
		r.wrong(at.in("hot_keys"), "key %s: hot_keys %v: %s %v", name, hotKeys, want, defaultHotKeys)
		hotKeys = defaultHotKeys
	}
	if !(hotOps > 0 && hotOps < 1) {
		r.wrong(at.in("hot_ops"), "key %s: hot_ops %v: %s %v", name, hotOps, want, defaultHotOps)
		hotOps = defaultHotOps
	}
	hot := max(min(int(math.Round(hotKeys*float64(count))), count-1), 1)
	d, err := keys.NewHotspot(count, hot, hotOps)
	return d.Key, err
}

// either returns the value that the file has, or else a default.
func either(given *float64, otherwise float64) float64 {
	if given == nil {
		return otherwise
	}
	return *given
}

// template builds the template of an operation. Names lists the keys in their order.
func (r *reader) template(at place, o operation, common map[string]string, names []string) template {
	t := template{class: workloads.Class(o.Class), method: o.Method, rate: o.BodyRate}
	if t.method == "" {
		t.method = http.MethodGet
	}
	if err := (workloads.Mix{{Class: t.class, Percent: 100}}).Validate(); err != nil {
		r.wrong(at.in("class"), "class %q: want letters, digits, - and _", o.Class)
	}
	if !httpguts.ValidHeaderFieldName(t.method) || strings.ToUpper(t.method) != t.method {
		r.wrong(at.in("method"), "method %q: want an HTTP method such as GET", o.Method)
	}
	t.write = workloads.Writes(t.method)
	if o.Write != nil {
		t.write = *o.Write
	}
	if !(o.BodyRate >= 0) || math.IsInf(o.BodyRate, 0) {
		r.wrong(at.in("body_rate"), "body_rate %v: want bytes per second, or 0 for no limit", o.BodyRate)
	} else if o.BodyRate > 0 && o.Body == "" && o.BodyFile == "" {
		r.wrong(at.in("body_rate"), "body_rate without a body: add body or body_file, or remove body_rate")
	}
	t.path = r.text(at.in("path"), o.Path, names, true)
	if sample := t.path.sample(); !strings.HasPrefix(sample, "/") {
		r.wrong(at.in("path"), "path %q: want a path that starts with a slash", o.Path)
	} else if _, err := url.ParseRequestURI(sample); err != nil {
		r.wrong(at.in("path"), "path %q: %v", o.Path, errors.Unwrap(err))
	}
	t.path.encode()
	if t.body = r.body(at, o, names); t.body.plain() {
		t.fixed = []byte(t.body.sample())
	}
	r.header(at, &t, common, o.Header, names)
	t.check = r.check(at.in("check"), o.Check)
	return t
}

// body returns the body of an op: a text with keys, or the unchanged content of a file.
func (r *reader) body(at place, o operation, names []string) text {
	switch {
	case o.BodyFile == "":
		return r.text(at.in("body"), o.Body, names, false)
	case o.Body != "":
		r.wrong(at.in("body_file"), "body and body_file cannot be used together")
		return nil
	}
	content, err := fs.ReadFile(r.files, o.BodyFile)
	switch {
	case err != nil:
		r.wrong(at.in("body_file"), "body_file: %v", err)
	case len(content) > maxFile:
		r.wrong(at.in("body_file"), "body_file %s: %d bytes: want at most %d", o.BodyFile, len(content), maxFile)
	}
	return text{{literal: string(content), key: none}}
}

// header merges the common headers with the op's own headers. An own header replaces a
// common header of the same name.
func (r *reader) header(at place, t *template, common, own map[string]string, names []string) {
	t.header = map[string]string{}
	add := func(at place, from map[string]string) {
		for name, value := range from {
			canonical := http.CanonicalHeaderKey(name)
			if !httpguts.ValidHeaderFieldName(name) || !httpguts.ValidHeaderFieldValue(value) {
				r.wrong(at.in(name), "header %s: %q: want a valid header name and value", name, value)
				continue
			}
			written := r.text(at.in(name), value, names, false)
			delete(t.header, canonical)
			t.drawn = slices.DeleteFunc(t.drawn, func(h drawnHeader) bool { return h.name == canonical })
			if written.plain() {
				t.header[canonical] = written.sample()
			} else {
				t.drawn = append(t.drawn, drawnHeader{canonical, written})
			}
		}
	}
	add(place{"header"}, common)
	add(at.in("header"), own)
}

// check builds the conditions for the response.
func (r *reader) check(at place, c *check) *workloads.Check {
	if c == nil {
		return nil
	}
	built := &workloads.Check{
		Status: c.Status, Header: c.Header, Contains: c.Contains, MinBytes: c.MinBytes, MaxBytes: c.MaxBytes,
	}
	for i, status := range c.Status {
		if status < 100 || status > 599 {
			r.wrong(at.in("status", i), "status %d: want 100 to 599", status)
		}
	}
	for i, expression := range c.Matches {
		matcher, err := regexp.Compile(expression)
		if err != nil {
			r.wrong(at.in("matches", i), "%v", err)
			continue
		}
		built.Matches = append(built.Matches, matcher)
	}
	if c.MinBytes < 0 || c.MaxBytes < 0 || c.MaxBytes > 0 && c.MaxBytes < c.MinBytes {
		r.wrong(at, "min_bytes %d, max_bytes %d: want 0 or more, with max_bytes >= min_bytes", c.MinBytes, c.MaxBytes)
	}
	return built
}

// text compiles a text that may contain key references in braces.
func (r *reader) text(at place, written string, names []string, isPath bool) text {
	var t text
	literal := func(s string) {
		if n := len(t); n > 0 && t[n-1].key == none {
			t[n-1].literal += s
		} else if s != "" {
			t = append(t, part{literal: s, key: none})
		}
	}
	end := 0
	for _, found := range inBraces.FindAllStringIndex(written, -1) {
		before := written[:found[0]]
		literal(before[end:])
		end = found[1]
		name := written[found[0]+1 : end-1]
		if strings.HasPrefix(name, "{") {
			literal(name)
			continue
		}
		p := part{key: r.reference(at, name, names)}
		if isPath {
			p.escape = url.PathEscape
			if strings.Contains(before, "?") {
				p.escape = url.QueryEscape
			}
		}
		t = append(t, p)
	}
	literal(written[end:])
	return t
}

// reference resolves a name in braces to the index of a key, theUser or theNumber.
func (r *reader) reference(at place, name string, names []string) int {
	switch name {
	case "user":
		return theUser
	case "n":
		return theNumber
	}
	if i := slices.Index(names, name); i >= 0 {
		return i
	}
	known := append([]string{"user", "n"}, names...)
	r.wrong(at, "unknown key {%s}: want one of %s; for the literal text write %s",
		name, strings.Join(known, ", "), "{{"+name+"}}")
	return none
}

// key is a source of values.
type key struct {
	pick   func(random uint64) int // nil for a sequence
	from   int
	cycle  uint64   // for a sequence: its length
	values []string // for a choice
	stream uint64
}

// appendTo appends the key's value in op n.
func (k *key) appendTo(to []byte, seed, n uint64) []byte {
	if k.pick == nil {
		value := uint64(k.from) + n%k.cycle
		if k.from < 0 { // the sum wrapped around: as a signed number it is correct
			return strconv.AppendInt(to, int64(value), 10)
		}
		return strconv.AppendUint(to, value, 10)
	}
	i := k.pick(workloads.Draw(seed, n, k.stream))
	if k.values != nil {
		return append(to, k.values[i]...)
	}
	return strconv.AppendInt(to, int64(k.from+i), 10)
}
