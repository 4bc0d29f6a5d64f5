package redis_test

import (
	"fmt"
	"net"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut/resp/resptest"
)

// Keys are dropped as they are asked for, however many there are.
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
	if dropped, err := s.Drop(t.Context(), func(key string) bool { return strings.HasSuffix(key, "7") }); err != nil || dropped != n/10 {
		t.Errorf("dropped %d: %v", dropped, err)
	}
	if left, err := c.DBSize(t.Context()).Result(); err != nil || left != n-n/10 {
		t.Errorf("%d are left: %v", left, err)
	}
}
