package topology_test

import (
	"strings"
	"testing"

	"github.com/stagebench/stagebench/targets/topology"
)

func TestAddresses(t *testing.T) {
	t.Parallel()
	a, b := topology.Addresses("one", 3), topology.Addresses("two", 3)
	if len(a) != 4 || a[0] == b[0] || a[0] == a[1] || !strings.HasPrefix(a[0], "127.") {
		t.Errorf("addresses %v and %v", a, b)
	}
	for _, address := range a {
		if strings.HasPrefix(address, "127.0.0.") {
			t.Errorf("%s is in 127.0.0.0/24, which other programs use", address)
		}
	}
}
