package file

import (
	"bytes"
	"maps"
	"sort"
	"strconv"

	"github.com/stagebench/stagebench/workloads"
)

// The streams of random numbers of one op.
const (
	streamOp    = iota // which kind it is
	streamUser         // whose it is
	streamOrder        // once per key: which values are the hot ones
	streamKeys         // from here on one for each key
)

// workload is a file as a source of ops.
type workload struct {
	name  string
	seed  uint64
	users int
	keys  []key
	ops   []template
	upTo  []float64 // sums of the weights, by op
	login *template // nil = there is none
}

// template is a kind of op with everything prepared that does not change.
type template struct {
	class  workloads.Class
	write  bool
	method string
	path   text
	header map[string]string // shared, never written to; not nil
	drawn  []drawnHeader     // headers with keys in them
	body   text
	fixed  []byte // the body, if it is the same in every op
	rate   float64
	check  *workloads.Check
}

// drawnHeader is a header with keys in it.
type drawnHeader struct {
	name  string
	value text
}

// Name implements workloads.Workload.
func (w *workload) Name() string { return w.name }

// Users implements workloads.Workload.
func (w *workload) Users() int { return w.users }

// Classes lists the classes of its ops, without the login's.
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
	// The first sum above the point; rounding may put it at the end of all.
	i := sort.Search(len(w.upTo)-1, func(i int) bool { return w.upTo[i] > point })
	user := -1
	if w.users > 0 {
		user = workloads.Below(workloads.Draw(w.seed, n, streamUser), w.users)
	}
	return w.make(&w.ops[i], n, user)
}

// make makes an op of its kind.
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

// LoginOp implements workloads.Login for a workload that has one. Keys in it are
// drawn by the number of the user.
func (w *workload) LoginOp(user int) workloads.Op { return w.make(w.login, uint64(user), user) }

// text is a text with keys in it.
type text []part

// part is a literal, or what a key's value is put in for.
type part struct {
	literal string
	key     int                 // position among the keys, theUser, theNumber, or none for a literal
	escape  func(string) string // how a value is written; nil = as it is
}

// What a part stands for that is no key.
const (
	none      = -1
	theUser   = -2
	theNumber = -3
)

// plain reports whether the text is the same in every op.
func (t text) plain() bool {
	return len(t) == 0 || len(t) == 1 && t[0].key == none
}

// sample is the text with 1 for every value.
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

// render puts the values of op n in.
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
