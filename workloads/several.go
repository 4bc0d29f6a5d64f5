package workloads

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Weighted is one request of Several.
type Weighted struct {
	Path   string  // with query
	Weight float64 // above 0, at most maxWeight; an op is this request in proportion to it
}

// maxWeight keeps the sum of weights exact enough.
const maxWeight = 1_000_000

// Several returns a workload of several requests with the same method, header and body: op n is one of them, picked by
// seed and n. The class of a request is its method and its path, in letters, digits and '-'. Apart from that, each is
// that of Single.
func Several(method string, requests []Weighted, header map[string]string, body []byte, seed uint64) (Workload, error) {
	if len(requests) == 0 {
		return nil, errors.New("no request: want at least one")
	}
	s := several{name: strings.ToLower(method), seed: seed}
	sum := 0.0
	for _, r := range requests {
		if !(r.Weight > 0 && r.Weight <= maxWeight) { // NaN, too
			return nil, fmt.Errorf("weight %v of %s: want more than 0, and at most %d", r.Weight, r.Path, maxWeight)
		}
		sum += r.Weight
	}
	for _, r := range requests {
		w, err := Single(method, r.Path, header, body)
		if err != nil {
			return nil, err
		}
		op := w.Op(0)
		op.Class = s.class(op)
		s.ops, s.mix = append(s.ops, op), append(s.mix, Share{op.Class, 100 * r.Weight / sum})
	}
	return s, nil
}

// Requests returns method and target of each class of a workload of Several, and nothing for any other workload.
func Requests(w Workload) map[Class]string {
	s, _ := w.(several)
	requests := map[Class]string{}
	for _, op := range s.ops {
		requests[op.Class] = op.Method + " " + op.Path
	}
	return requests
}

// several is a workload that picks one of several ops.
type several struct {
	name string
	seed uint64
	ops  []Op
	mix  Mix
}

// class returns the class of a further op: get-api-items, or get-api-items-2 if there is one already.
func (s several) class(op Op) Class {
	path, _, _ := strings.Cut(op.Path, "?")
	words := append([]string{string(op.Class)}, strings.FieldsFunc(path, func(r rune) bool {
		return !Class(string(r)).valid()
	})...)
	base := Class(strings.Join(words, "-"))
	class := base
	for n := 2; slices.Contains(s.Classes(), class); n++ {
		class = Class(fmt.Sprintf("%s-%d", base, n))
	}
	return class
}

func (s several) Name() string { return s.name }
func (several) Users() int     { return 0 }

func (s several) Op(n uint64) Op {
	op := s.ops[s.mix.Pick(Draw(s.seed, n, 0))]
	op.Index = n
	return op
}

// Classes lists the classes of the requests.
func (s several) Classes() (classes []Class) {
	for _, op := range s.ops {
		classes = append(classes, op.Class)
	}
	return classes
}
