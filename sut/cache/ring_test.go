package cache

import (
	"fmt"
	"slices"
	"testing"
)

func names(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprint("cache-", i+1))
	}
	return all
}

// owners says who has which of many keys.
func owners(r *Ring) []string {
	var all []string
	for i := range 50_000 {
		all = append(all, r.Owner(fmt.Sprint("photo:", i)))
	}
	return all
}

// moved counts the keys that another host has now, and checks which of them may.
func moved(t *testing.T, before, after []string, may func(from, to string) bool) float64 {
	t.Helper()
	n := 0
	for i := range before {
		if before[i] == after[i] {
			continue
		}
		if n++; !may(before[i], after[i]) {
			t.Fatalf("key %d went from %s to %s", i, before[i], after[i])
		}
	}
	return float64(n) / float64(len(before))
}

// No host has more slots than its bound, with any number of hosts, and none has far
// less than the others.
func TestBoundedLoad(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 16; n++ {
		r := NewRing(names(n))
		load := map[string]int{}
		for _, owner := range r.owners {
			load[r.names[owner]]++
		}
		for _, name := range names(n) {
			if load[name] > capacity(n) || load[name] < slots/n/3 {
				t.Errorf("%d hosts: %s has %d slots, may have %d", n, name, load[name], capacity(n))
			}
		}
	}
}

// A fourth host takes about a quarter of the keys, and few others move.
func TestNewHost(t *testing.T) {
	t.Parallel()
	before, after := owners(NewRing(names(3))), owners(NewRing(names(4)))
	toNew := 0
	share := moved(t, before, after, func(_, to string) bool {
		if to == "cache-4" {
			toNew++
		}
		return true
	})
	got := float64(toNew) / float64(len(before))
	t.Logf("%.1f %% moved, %.1f %% to the new host", 100*share, 100*got)
	if got < 0.15 || got > 0.3 || share-got > 0.15 {
		t.Errorf("%.1f %% moved, %.1f %% to the new host", 100*share, 100*got)
	}
}

// Where keys are does not depend on the order in which the hosts are named: each web
// host may have heard of them in another one.
func TestOrderDoesNotMatter(t *testing.T) {
	t.Parallel()
	backwards := names(5)
	slices.Reverse(backwards)
	if !slices.Equal(owners(NewRing(names(5))), owners(NewRing(backwards))) {
		t.Error("it does")
	}
}

// The places are part of what web hosts of two versions have to agree on while one
// replaces the other.
func TestRingIsFixed(t *testing.T) {
	t.Parallel()
	r := NewRing(names(3))
	var got []string
	for i := range 8 {
		got = append(got, r.Owner(fmt.Sprint("photo:", i)))
	}
	want := []string{"cache-3", "cache-1", "cache-2", "cache-2", "cache-1", "cache-2", "cache-2", "cache-2"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func BenchmarkOwner(b *testing.B) {
	r := NewRing(names(3))
	for b.Loop() {
		r.Owner("photo:12345678")
	}
}

func BenchmarkNewRing(b *testing.B) {
	all := names(3)
	for b.Loop() {
		NewRing(all)
	}
}

// When hosts do not answer, all agree on who is next: each host comes once, and the keys
// of one are spread over all others.
func TestNth(t *testing.T) {
	all := names(5)
	r, other := NewRing(all), NewRing([]string{all[3], all[0], all[4], all[2], all[1]})
	next := map[string]int{}
	for i := range 10_000 {
		key := fmt.Sprint("photo:", i)
		var order []string
		for n := range all {
			order = append(order, r.nthOwner(key, n))
			if o := other.nthOwner(key, n); o != order[n] {
				t.Fatalf("%s: host %d is %s or %s", key, n, order[n], o)
			}
		}
		if order[0] != r.Owner(key) {
			t.Errorf("%s belongs to %s, and is looked for at %s first", key, r.Owner(key), order[0])
		}
		if order[0] == all[0] {
			next[order[1]]++
		}
		slices.Sort(order)
		if !slices.Equal(order, all) {
			t.Errorf("%s is looked for at %v", key, order)
		}
	}
	for _, name := range all[1:] {
		if n := next[name]; n < 250 || n > 1000 {
			t.Errorf("%s is next for %d of some 2,000 keys: %v", name, n, next)
		}
	}
}
