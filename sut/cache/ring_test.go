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
func owners(r *ring) []string {
	var all []string
	for i := range 50_000 {
		all = append(all, r.owner(fmt.Sprint("photo:", i)))
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

// No host has more slots than its bound, with any number of hosts, some of which are
// down; and none has far less than the others.
func TestBoundedLoad(t *testing.T) {
	t.Parallel()
	for n := 1; n <= 16; n++ {
		for dead := range min(n, 4) {
			down := map[string]bool{}
			for _, name := range names(n)[:dead] {
				down[name] = true
			}
			r := newRing(names(n), down)
			load := map[string]int{}
			for _, owner := range r.owners {
				load[r.names[owner]]++
			}
			for name, slots := range load {
				if down[name] || slots > capacity(n-dead) {
					t.Errorf("%d hosts, %d down: %s has %d slots, may have %d", n, dead, name, slots, capacity(n-dead))
				}
			}
			if dead == 0 {
				for _, name := range names(n) {
					if load[name] < slots/n/3 {
						t.Errorf("%d hosts: %s has %d slots only", n, name, load[name])
					}
				}
			}
		}
	}
}

// When one of three hosts dies only its keys move, at most 40 % of all; when it is
// back everything is as before.
func TestDeadHostMovesItsKeysOnly(t *testing.T) {
	t.Parallel()
	before := owners(newRing(names(3), nil))
	for _, dead := range names(3) {
		after := owners(newRing(names(3), map[string]bool{dead: true}))
		share := moved(t, before, after, func(from, to string) bool { return from == dead && to != dead })
		t.Logf("%s had %.1f %%", dead, 100*share)
		if share > 0.4 || share < 0.2 {
			t.Errorf("%s had %.1f %% of the keys", dead, 100*share)
		}
	}
	if !slices.Equal(before, owners(newRing(names(3), nil))) {
		t.Error("not as before")
	}
}

// A fourth host takes about a quarter of the keys, and few others move.
func TestNewHost(t *testing.T) {
	t.Parallel()
	before, after := owners(newRing(names(3), nil)), owners(newRing(names(4), nil))
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
	if !slices.Equal(owners(newRing(names(5), nil)), owners(newRing(backwards, nil))) {
		t.Error("it does")
	}
}

// With all hosts down there is nobody better.
func TestAllDown(t *testing.T) {
	t.Parallel()
	if !slices.Equal(owners(newRing(names(2), map[string]bool{"cache-1": true, "cache-2": true})), owners(newRing(names(2), nil))) {
		t.Error("keys moved")
	}
}

// The places are part of what web hosts of two versions have to agree on while one
// replaces the other.
func TestRingIsFixed(t *testing.T) {
	t.Parallel()
	r := newRing(names(3), nil)
	var got []string
	for i := range 8 {
		got = append(got, r.owner(fmt.Sprint("photo:", i)))
	}
	want := []string{"cache-3", "cache-1", "cache-2", "cache-2", "cache-1", "cache-2", "cache-2", "cache-2"}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

func BenchmarkOwner(b *testing.B) {
	r := newRing(names(3), nil)
	for b.Loop() {
		r.owner("photo:12345678")
	}
}

func BenchmarkNewRing(b *testing.B) {
	all := names(3)
	for b.Loop() {
		newRing(all, nil)
	}
}

// When hosts do not answer, all agree on who is next: each host comes once, and the keys
// of one are spread over all others.
func TestNth(t *testing.T) {
	all := names(5)
	r, other := newRing(all, nil), newRing([]string{all[3], all[0], all[4], all[2], all[1]}, nil)
	next := map[string]int{}
	for i := range 10_000 {
		key := fmt.Sprint("photo:", i)
		var order []string
		for n := range all {
			order = append(order, r.nth(key, n))
			if o := other.nth(key, n); o != order[n] {
				t.Fatalf("%s: host %d is %s or %s", key, n, order[n], o)
			}
		}
		if order[0] != r.owner(key) {
			t.Errorf("%s belongs to %s, and is looked for at %s first", key, r.owner(key), order[0])
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
