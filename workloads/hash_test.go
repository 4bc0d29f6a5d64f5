package workloads_test

import (
	"testing"

	"github.com/stagebench/stagebench/workloads"
)

// listed is a workload with an explicit list of ops.
type listed []workloads.Op

func (listed) Name() string               { return "listed" }
func (l listed) Op(n uint64) workloads.Op { return l[n] }
func (listed) Users() int                 { return 0 }

func TestHashCoversTheRequest(t *testing.T) {
	base := workloads.Op{Method: "POST", Path: "/a", Class: "like", User: 3, Body: []byte("x")}
	change := func(f func(op *workloads.Op)) listed {
		op := base
		f(&op)
		return listed{op}
	}
	seen := map[string]string{}
	for name, w := range map[string]listed{
		"base":           {base},
		"method":         change(func(op *workloads.Op) { op.Method = "PUT" }),
		"path":           change(func(op *workloads.Op) { op.Path = "/b" }),
		"class":          change(func(op *workloads.Op) { op.Class = "comment" }),
		"user":           change(func(op *workloads.Op) { op.User = -1 }),
		"body":           change(func(op *workloads.Op) { op.Body = []byte("y") }),
		"no body":        change(func(op *workloads.Op) { op.Body = nil }),
		"boundary moved": change(func(op *workloads.Op) { op.Path, op.Class = "/al", "ike" }),
	} {
		hash := workloads.Hash(w, 0, 1)
		if other, twice := seen[hash]; twice {
			t.Errorf("%s and %s have the same hash", name, other)
		}
		seen[hash] = name
	}
}

func TestHashOfARange(t *testing.T) {
	ops := listed{{Path: "/0"}, {Path: "/1"}, {Path: "/2"}, {Path: "/3"}}
	if a, b := workloads.Hash(ops, 1, 2), workloads.Hash(ops[1:], 0, 2); a != b {
		t.Errorf("ops 1 and 2 have the hash %s as a range, %s as a separate workload", a, b)
	}
	if a, b := workloads.Hash(ops, 0, 3), workloads.Hash(ops, 0, 4); a == b {
		t.Error("an additional op did not change the hash")
	}
}
