package workloads_test

import (
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/workloads"
)

func TestSingle(t *testing.T) {
	header, body := map[string]string{"Content-Type": "text/plain"}, []byte("hello")
	w, err := workloads.Single("POST", "/echo?x=1", header, body)
	if err != nil {
		t.Fatal(err)
	}
	header["Content-Type"], body[0] = "changed", 'J' // the workload has its own copies
	want := workloads.Op{
		Index: 41, Class: "post", Write: true, Method: "POST", Path: "/echo?x=1",
		Header: map[string]string{"Content-Type": "text/plain"}, Body: []byte("hello"), User: -1,
	}
	if diff := cmp.Diff(want, w.Op(41)); diff != "" {
		t.Error(diff)
	}
	if w.Name() != "post" || w.Users() != 0 {
		t.Errorf("name %q with %d users, want post with 0 users", w.Name(), w.Users())
	}
}

func TestSingleTellsReadsFromWrites(t *testing.T) {
	for method, write := range map[string]bool{
		"GET": false, "HEAD": false, "OPTIONS": false, "PUT": true, "DELETE": true,
	} {
		w, err := workloads.Single(method, "/", nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		if got := w.Op(0).Write; got != write {
			t.Errorf("%s: write %v, want %v", method, got, write)
		}
	}
}

func TestSingleRefuses(t *testing.T) {
	for _, bad := range [][2]string{
		{"", "/"},
		{"GET it", "/"},
		{"GET", ""},
		{"GET", "feed"},
		{"GET", "http://example.com/"},
		{"GET", "/a b\n"},
		{"GET", "/%zz"},
	} {
		if w, err := workloads.Single(bad[0], bad[1], nil, nil); err == nil {
			t.Errorf("%q was accepted: %+v", bad, w.Op(0))
		}
	}
}
