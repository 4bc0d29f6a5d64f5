package sut_test

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"github.com/stagebench/stagebench/sut"
)

func TestParseRoutes(t *testing.T) {
	got, err := sut.ParseRoutes(" path=/img/* -> web-3; method=POST header=X-Batch:1 cookie=beta -> web-1  web-2 ")
	want := []sut.Route{
		{Path: "/img/*", To: []string{"web-3"}},
		{Method: "POST", Header: "X-Batch:1", Cookie: "beta", To: []string{"web-1", "web-2"}},
	}
	if diff := cmp.Diff(want, got); err != nil || diff != "" {
		t.Errorf("%v (-want +got)\n%s", err, diff)
	}
	for text, want := range map[string]string{
		"web-1":                       "want CONDITION... -> HOST...",
		"path=/a ->":                  "no hosts after ->",
		"host=a -> web-1":             `condition "host=a": want method=`,
		"path= -> web-1":              `condition "path=": want method=`,
		"path=/a path=/b -> web-1":    "already has a path",
		"path=a -> web-1":             `path "a": want a path`,
		"path=/a*b -> web-1":          `path "/a*b": want a path`,
		"method=post -> web-1":        `method "post": want a method`,
		"header=X:a\"b -> web-1":      `want NAME or NAME:VALUE`,
		"path=/a -> web;1":            "want CONDITION",
		"path=/a -> Web 1":            `host "Web": want a name`,
		"path=/a -> web-1;; -> b":     "want CONDITION",
		"cookie=a:b:c -> web-1":       "want NAME or NAME:VALUE",
		"header=X-Y:1\nevil -> web-1": `condition "evil"`,
	} {
		if _, err := sut.ParseRoutes(text); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: error %v, want one with %q", text, err, want)
		}
	}
}
