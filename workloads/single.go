package workloads

import (
	"bytes"
	"fmt"
	"maps"
	"net/http"
	"net/url"
	"strings"
)

// Single returns the workload that asks for one thing for ever. Its class and
// its name are the method in lower case; its ops are nobody's. Path is path and
// query and starts with a slash. Header and body are copied.
func Single(method, path string, header map[string]string, body []byte) (Workload, error) {
	class := Class(strings.ToLower(method))
	if !class.valid() {
		return nil, fmt.Errorf("method %q: want an HTTP method such as GET", method)
	}
	if _, err := url.ParseRequestURI(path); err != nil || !strings.HasPrefix(path, "/") {
		return nil, fmt.Errorf("path %q: want a path that starts with a slash, for example /api/feed?user=1", path)
	}
	return same{Op{
		Class:  class,
		Write:  Writes(method),
		Method: method, Path: path,
		Header: maps.Clone(header), Body: bytes.Clone(body),
		User: -1,
	}}, nil
}

// Writes reports whether a request by that method is meant to change something.
func Writes(method string) bool {
	return method != http.MethodGet && method != http.MethodHead && method != http.MethodOptions
}

// same is the workload of one op.
type same struct{ op Op }

func (s same) Name() string { return string(s.op.Class) }

func (s same) Op(n uint64) Op {
	op := s.op
	op.Index = n
	return op
}

func (same) Users() int { return 0 }
