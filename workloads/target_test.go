package workloads_test

import (
	"testing"

	"github.com/stagebench/stagebench/workloads"
)

func TestRequestTarget(t *testing.T) {
	for written, want := range map[string]string{
		"/find?q=two words":    "/find?q=two%20words",
		"/find?q=Käse":         "/find?q=K%C3%A4se",
		"/Käse/two words":      "/K%C3%A4se/two%20words",
		"/a%20b?c=%zz&d=100%":  "/a%20b?c=%25zz&d=100%25",
		"/a?b=c&d=[1]+~!$'()":  "/a?b=c&d=[1]+~!$'()",
		"/a\"<>\\^`{|}#\x7f\n": "/a%22%3C%3E%5C%5E%60%7B%7C%7D%23%7F%0A",
	} {
		if got := workloads.RequestTarget(written); got != want {
			t.Errorf("RequestTarget(%q) = %q, want %q", written, got, want)
		}
	}
	w, err := workloads.Single("GET", "/find?q=two words", nil, nil)
	if err != nil || w.Op(0).Path != "/find?q=two%20words" {
		t.Errorf("Single requests %q, error %v", w.Op(0).Path, err)
	}
}
