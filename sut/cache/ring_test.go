package cache

import (
	"fmt"
	"slices"
	"testing"
)

func hostNames(n int) []string {
	var all []string
	for i := range n {
		all = append(all, fmt.Sprint("cache-", i+1))
	}
	return all
}

// owners returns the host of each of 50,000 keys.
func owners(r *Ring) []string {
	var all []string
	for i := range 50_000 {
		all = append(all, r.Owner(fmt.Sprint("photo:", i)))
	}
	return all
}

// TestBoundedLoad: with any number of hosts, no host has more slots than its capacity,
// and no host has far fewer slots than the others.
func TestBoundedLoad(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 16; n++ {
		r := NewRing(hostNames(n))
		load := map[string]int{}
		for _, owner := range r.owners {
			load[r.names[owner]]++
		}
		for _, name := range hostNames(n) {
			if load[name] > capacity(n) || load[name] < slots/n/3 {
				t.Errorf("%d hosts: %s has %d slots, want %d to %d", n, name, load[name], slots/n/3, capacity(n))
			}
		}
	}
}

// TestNewHost: a fourth host takes about a quarter of the keys. Few keys move between the
// other hosts.
func TestNewHost(t *testing.T) {
	t.Parallel()
	before, after := owners(NewRing(hostNames(3))), owners(NewRing(hostNames(4)))
	moved, movedToNew := 0, 0
	for i := range before {
		if before[i] == after[i] {
			continue
		}
		moved++
		if after[i] == "cache-4" {
			movedToNew++
		}
	}
	n := float64(len(before))
	all, toNew := float64(moved)/n, float64(movedToNew)/n
	if toNew < 0.15 || toNew > 0.3 || all-toNew > 0.15 {
		t.Errorf("%.1f %% of the keys moved, %.1f %% to the new host", 100*all, 100*toNew)
	}
}

// TestOrderDoesNotMatter: two web hosts may list the cache hosts in different order.
func TestOrderDoesNotMatter(t *testing.T) {
	t.Parallel()
	backwards := hostNames(5)
	slices.Reverse(backwards)
	if !slices.Equal(owners(NewRing(hostNames(5))), owners(NewRing(backwards))) {
		t.Error("the owners depend on the order of the host names")
	}
}

// TestRingIsFixed: during an upgrade, web hosts of two versions use the same cache hosts.
// So a new version must not change the owners.
func TestRingIsFixed(t *testing.T) {
	t.Parallel()
	r := NewRing(hostNames(3))
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
	r := NewRing(hostNames(3))
	for b.Loop() {
		r.Owner("photo:12345678")
	}
}

func BenchmarkNewRing(b *testing.B) {
	all := hostNames(3)
	for b.Loop() {
		NewRing(all)
	}
}

// TestNthOwner: when hosts do not answer, all clients agree on the next host of a key.
// Each host comes once. The keys of a dead host are spread over all other hosts.
func TestNthOwner(t *testing.T) {
	all := hostNames(5)
	r, other := NewRing(all), NewRing([]string{all[3], all[0], all[4], all[2], all[1]})
	next := map[string]int{}
	for i := range 10_000 {
		key := fmt.Sprint("photo:", i)
		var order []string
		for n := range all {
			order = append(order, r.nthOwner(key, n))
			if o := other.nthOwner(key, n); o != order[n] {
				t.Fatalf("%s: two clients disagree on host %d: %s and %s", key, n, order[n], o)
			}
		}
		if order[0] != r.Owner(key) {
			t.Errorf("%s: the first host is %s, want the owner %s", key, order[0], r.Owner(key))
		}
		if order[0] == all[0] {
			next[order[1]]++
		}
		slices.Sort(order)
		if !slices.Equal(order, all) {
			t.Errorf("%s: got the hosts %v, want each host once", key, order)
		}
	}
	for _, name := range all[1:] {
		if n := next[name]; n < 250 || n > 1000 {
			t.Errorf("%s is the next host of %d keys, want 250 to 1,000: %v", name, n, next)
		}
	}
}
