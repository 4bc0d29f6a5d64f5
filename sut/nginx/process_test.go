package nginx_test

import (
	"testing"

	"github.com/stagebench/stagebench/sut/nginx"
)

// installed finds the server or skips the test.
func installed(t testing.TB) nginx.Install {
	t.Helper()
	install, err := nginx.Find()
	if err != nil {
		t.Skipf("needs Debian's package nginx-light: %v", err)
	}
	return install
}
