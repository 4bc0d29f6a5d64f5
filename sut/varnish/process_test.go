package varnish_test

import (
	"testing"

	"github.com/stagebench/stagebench/sut/varnish"
)

// installed finds the server or skips the test.
func installed(t testing.TB) varnish.Install {
	t.Helper()
	install, err := varnish.Find()
	if err != nil {
		t.Skipf("needs Debian's package varnish: %v", err)
	}
	return install
}
