package memcached_test

import (
	"bufio"
	"fmt"
	"strings"
	"testing"

	"github.com/stagebench/stagebench/sut/memcached/memcachedtest"
)

// Drop deletes keys in more than one batch, and keys that the server escapes in its list.
func TestDrop(t *testing.T) {
	t.Parallel()
	const n = 5000
	p := memcachedtest.Start(t, 8*mebibyte, "")
	s := open(t, p)
	w := bufio.NewWriter(s)
	for i := range n {
		_, _ = fmt.Fprintf(w, "set photo:%%%d 0 0 1 noreply\r\nx\r\n", i)
	}
	_, _ = fmt.Fprint(w, "version\r\n")
	if err := w.Flush(); err != nil {
		t.Fatal(err)
	}
	if line, err := s.replies.ReadString('\n'); err != nil || !strings.HasPrefix(line, "VERSION") {
		t.Fatalf("%q, %v", line, err)
	}
	dropped, err := p.Drop(t.Context(), func(key string) bool {
		return strings.HasSuffix(key, "7") && key[:7] == "photo:%"
	})
	if err != nil || dropped != n/10 {
		t.Errorf("dropped %d keys, error %v; want %d", dropped, err, n/10)
	}
	if left := p.Figures(t).Entries; left != n-n/10 {
		t.Errorf("%d keys are left, want %d", left, n-n/10)
	}
	dropped, err = p.Drop(t.Context(), func(string) bool { return false })
	if err != nil || dropped != 0 {
		t.Errorf("dropped %d keys, error %v; want none", dropped, err)
	}
}

// Drop finds all keys, also those that were read or written a moment ago: the server moves these in its lists.
func TestDropFindsKeysInUse(t *testing.T) {
	t.Parallel()
	const n, rounds = 40, 50
	p := memcachedtest.Start(t, 8*mebibyte, "")
	s := open(t, p)
	for round := range rounds {
		for i := range n {
			if round == 0 || (i+round)%3 > 0 {
				if got := s.send("set photo:%d 0 0 1\r\nx\r\n", i); got != "STORED" {
					t.Fatal(got)
				}
			}
			if lines := s.all(fmt.Sprintf("get photo:%d\r\n", i)); len(lines) != 2 {
				t.Fatal(lines)
			}
		}
		found := 0
		if _, err := p.Drop(t.Context(), func(string) bool { found++; return false }); err != nil || found != n {
			t.Fatalf("round %d: found %d of %d keys, error %v", round, found, n, err)
		}
	}
}
