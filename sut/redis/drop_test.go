package redis_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut/resp/resptest"
)

// Drop visits all keys, also when one SCAN does not reach them all.
func TestDrop(t *testing.T) {
	t.Parallel()
	const n = 5000
	address := resptest.Redis(t)
	c := resptest.Client(address)
	defer func() { _ = c.Close() }()
	var pairs []string
	for i := range n {
		pairs = append(pairs, fmt.Sprintf("photo:%d", i), "x")
	}
	if err := c.MSet(t.Context(), pairs).Err(); err != nil {
		t.Fatal(err)
	}
	at, err := net.ResolveTCPAddr("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	s := describe(at)
	dropped, err := s.Drop(t.Context(), func(key string) bool { return strings.HasSuffix(key, "7") })
	if err != nil || dropped != n/10 {
		t.Errorf("dropped %d keys, error %v; want %d", dropped, err, n/10)
	}
	if left, err := c.DBSize(t.Context()).Result(); err != nil || left != n-n/10 {
		t.Errorf("%d keys are left, error %v; want %d", left, err, n-n/10)
	}
}
