package workloads

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
)

// Single returns a workload that repeats one request for ever. The method in lower
// case is its class and its name. Its ops have no virtual user. Path holds path and
// query, must start with a slash and is encoded as needed. Header and body are copied.
func Single(method, path string, header map[string]string, body []byte) (Workload, error) {
	class := Class(strings.ToLower(method))
	if !class.valid() {
		return nil, fmt.Errorf("method %q: want an HTTP method such as GET", method)
	}
	if _, err := url.ParseRequestURI(path); err != nil || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("path %q: want a path that starts with a slash, for example /api/feed?user=1", path)
	}
	return single{Op{
		Class:  class,
		Write:  Writes(method),
		Method: method, Path: RequestTarget(path),
		Header: maps.Clone(header), Body: bytes.Clone(body),
		User: -1,
	}}, nil
}

// Writes reports whether requests with the method may change data on the target.
func Writes(method string) bool {
	return method != http.MethodGet && method != http.MethodHead && method != http.MethodOptions
}

// single is a workload that repeats one op.
type single struct{ op Op }

func (s single) Name() string { return string(s.op.Class) }

func (s single) Op(n uint64) Op {
	op := s.op
	op.Index = n
	return op
}

func (single) Users() int { return 0 }

// Classes lists the class of all ops.
func (s single) Classes() []Class { return []Class{s.op.Class} }
