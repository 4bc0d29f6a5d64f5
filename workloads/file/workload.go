package file

import (
	"bytes"
	"maps"
	"sort"
	"strconv"

	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
)

// The random streams of a workload.
const (
	streamOp    = iota // selects the template
	streamUser         // selects the virtual user
	streamOrder        // seeds the scrambling of a key, which selects its hot values
	streamKeys         // the first of the streams of the keys, one per key
)

// workload is the workload that a file describes.
type workload struct {
	name   string
	seed   uint64
	users  int
	phases []pace.Phase
	keys   []key
	ops    []template
	upTo   []float64 // cumulative sums of the weights, by op
	login  *template // nil = no login
}

// template is a compiled operation. It holds everything that all its ops share.
type template struct {
	class  workloads.Class
	write  bool
	method string
	path   text
	header map[string]string // headers without keys; shared and read-only; not nil
	drawn  []drawnHeader     // headers with keys
	body   text
	fixed  []byte // the body, if it is equal in every op
	rate   float64
	check  *workloads.Check
}

// drawnHeader is a header whose value contains keys.
type drawnHeader struct {
	name  string
	value text
}

// Name implements workloads.Workload.
func (w *workload) Name() string { return w.name }

// Users implements workloads.Workload.
func (w *workload) Users() int { return w.users }

// Phases lists the phases of the rate; none if the file has none.
func (w *workload) Phases() []pace.Phase { return w.phases }

// Classes lists the classes of the ops, without the login.
func (w *workload) Classes() (classes []workloads.Class) {
	for i := range w.ops {
		classes = append(classes, w.ops[i].class)
	}
	return classes
}

// Op implements workloads.Workload.
func (w *workload) Op(n uint64) workloads.Op {
	total := w.upTo[len(w.upTo)-1]
	point := workloads.Unit(workloads.Draw(w.seed, n, streamOp)) * total
	// Find the first sum above the point. Rounding can put the point at the total:
	// the last op is then selected.
	i := sort.Search(len(w.upTo)-1, func(i int) bool { return w.upTo[i] > point })
	user := -1
	if w.users > 0 {
		user = workloads.Below(workloads.Draw(w.seed, n, streamUser), w.users)
	}
	return w.make(&w.ops[i], n, user)
}

// make builds op n from a template.
func (w *workload) make(t *template, n uint64, user int) workloads.Op {
	op := workloads.Op{
		Index: n, Class: t.class, Write: t.write, Method: t.method, Header: t.header, User: user,
		BodyRate: t.rate, Check: t.check, Path: string(w.render(t.path, n, user)),
	}
	if op.Body = t.fixed; !t.body.plain() {
		op.Body = w.render(t.body, n, user)
	}
	if len(t.drawn) > 0 {
		op.Header = maps.Clone(t.header)
		for i := range t.drawn {
			op.Header[t.drawn[i].name] = string(w.render(t.drawn[i].value, n, user))
		}
	}
	return op
}

// LoginOp implements workloads.Login. The workload must have a login. Its keys are
// drawn with the number of the user as n.
func (w *workload) LoginOp(user int) workloads.Op { return w.make(w.login, uint64(user), user) }

// text is a compiled text: literals and references.
type text []part

// part is a literal or a reference.
type part struct {
	literal string
	key     int                 // index of a key, theUser, theNumber, or none for a literal
	escape  func(string) string // encodes the value; nil = unchanged
}

// Values of part.key that are not the index of a key.
const (
	none      = -1
	theUser   = -2
	theNumber = -3
)

// plain reports whether the text contains no references.
func (t text) plain() bool {
	return len(t) == 0 || len(t) == 1 && t[0].key == none
}

// sample returns the text with 1 in place of every reference.
func (t text) sample() string {
	var s string
	for _, p := range t {
		if p.key == none {
			s += p.literal
		} else {
			s += "1"
		}
	}
	return s
}

// encode percent-encodes the literals of a path as needed.
func (t text) encode() {
	for i := range t {
		t[i].literal = workloads.RequestTarget(t[i].literal)
	}
}

// render returns the text with the values of op n.
func (w *workload) render(t text, n uint64, user int) []byte {
	var buffer [128]byte
	out := buffer[:0]
	for i := range t {
		p := &t[i]
		switch p.key {
		case none:
			out = append(out, p.literal...)
		case theUser:
			out = strconv.AppendInt(out, int64(user), 10)
		case theNumber:
			out = strconv.AppendUint(out, n, 10)
		default:
			k := &w.keys[p.key]
			if p.escape == nil || k.values == nil {
				out = k.appendTo(out, w.seed, n)
				continue
			}
			out = append(out, p.escape(string(k.appendTo(nil, w.seed, n)))...)
		}
	}
	return bytes.Clone(out)
}
