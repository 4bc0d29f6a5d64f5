package workloads_test

import (
	"math"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/workloads"
)

func TestSeveral(t *testing.T) {
	w, err := workloads.Several("GET", []workloads.Weighted{
		{"/", 1}, {"/api/items?page=1", 6}, {"/api/items?page=2", 3},
	}, map[string]string{"Accept": "text/plain"}, nil, 7)
	if err != nil {
		t.Fatal(err)
	}
	const n = 20_000
	counts := map[string]float64{}
	for i := range uint64(n) {
		op := w.Op(i)
		if op.Index != i || op.Header["Accept"] != "text/plain" || op.User != -1 || op.Write {
			t.Fatalf("op %d is %+v", i, op)
		}
		counts[string(op.Class)+" "+op.Path]++
	}
	for request, share := range map[string]float64{
		"get /": 0.1, "get-api-items /api/items?page=1": 0.6, "get-api-items-2 /api/items?page=2": 0.3,
	} {
		if got := counts[request] / n; math.Abs(got-share) > 0.01 {
			t.Errorf("%.3f of the ops are %s, want %v", got, request, share)
		}
	}
	want := []workloads.Class{"get", "get-api-items", "get-api-items-2"}
	if diff := cmp.Diff(want, w.(interface{ Classes() []workloads.Class }).Classes()); diff != "" {
		t.Error(diff)
	}
	again, err := workloads.Several("GET", []workloads.Weighted{{"/a", 1}, {"/b", 1}}, nil, nil, 7)
	if err != nil {
		t.Fatal(err)
	}
	other, err := workloads.Several("GET", []workloads.Weighted{{"/a", 1}, {"/b", 1}}, nil, nil, 8)
	if err != nil {
		t.Fatal(err)
	}
	if workloads.Hash(again, 0, 100) == workloads.Hash(other, 0, 100) {
		t.Error("two seeds give the same sequence")
	}
}

func TestSeveralRefuses(t *testing.T) {
	for want, requests := range map[string][]workloads.Weighted{
		"at least one": nil,
		"more than 0":  {{"/", 1}, {"/a", 0}},
		"weight NaN":   {{"/", math.NaN()}},
		"slash":        {{"a", 1}},
	} {
		_, err := workloads.Several("GET", requests, nil, nil, 1)
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v: error %v, want one with %q", requests, err, want)
		}
	}
}
