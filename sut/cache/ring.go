package cache

import (
	"cmp"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
)

// Of the ring. The share of a host is at most bound times the mean: of three
// hosts, 38.3 % of the slots.
const (
	slots  = 4096 // into which all keys are divided
	points = 128  // of each host on the circle
	bound  = 1.15
)

// Ring says which host has which keys, as a pure function of the hosts' names: all
// clients that know the same hosts agree, so that what one has stored another one
// finds, and deletes.
//
// It is consistent hashing with bounded loads: keys are divided into slots, and a
// slot belongs to the first host clockwise of it that has fewer slots than its
// bound. Source: Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with
// Bounded Loads, SODA 2018 (arXiv 1608.01350, 2016). Their load is that of the
// moment; here it is the number of slots, as a key that moved with the load would be
// deleted where it is not. So a popular key makes its host busy all the same.
//
// When hosts come or go the circle is another one, and some more slots than theirs
// move: those that had been pushed on by a bound.
type Ring struct {
	names  []string // in order
	owners [slots]uint16
}

// point is a place on the circle that belongs to a host.
type point struct {
	at   uint64
	host uint16
}

// NewRing places the slots on hosts, by their names.
func NewRing(names []string) *Ring {
	r := &Ring{names: slices.Compact(slices.Sorted(slices.Values(names)))}
	circle := make([]point, 0, len(r.names)*points)
	for i, name := range r.names {
		for p := range points {
			circle = append(circle, point{hash(name + "/" + strconv.Itoa(p)), uint16(i)})
		}
	}
	slices.SortFunc(circle, func(a, b point) int { return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.host, b.host)) })
	load := make([]int, len(r.names))
	for slot := range r.owners {
		r.owners[slot] = first(circle, slot, load)
		load[r.owners[slot]]++
	}
	return r
}

// capacity is how many slots each of so many hosts may have.
func capacity(hosts int) int { return int(math.Ceil(bound * slots / float64(hosts))) }

// first is the first host clockwise of a slot that may have another one.
func first(circle []point, slot int, load []int) uint16 {
	at := hash("slot/" + strconv.Itoa(slot))
	from, _ := slices.BinarySearchFunc(circle, at, func(p point, at uint64) int { return cmp.Compare(p.at, at) })
	for i := range circle {
		if p := circle[(from+i)%len(circle)]; load[p.host] < capacity(len(load)) {
			return p.host
		}
	}
	panic("cache: all hosts are full, although their bounds add up to more than all slots")
}

// Owner is the name of the host that has a key.
func (r *Ring) Owner(key string) string { return r.names[r.owners[hash(key)%slots]] }

// nth is the host that has a key when the n hosts before it do not answer: all that
// know the same hosts agree. They are in the order of their hashes with the key's slot
// (rendezvous hashing), so that the keys of a dead host are spread over all others.
func (r *Ring) nth(key string, n int) string {
	owner := r.Owner(key)
	if n == 0 {
		return owner
	}
	others := slices.DeleteFunc(slices.Clone(r.names), func(name string) bool { return name == owner })
	slices.SortFunc(others, func(a, b string) int {
		at := "/" + strconv.FormatUint(hash(key)%slots, 10)
		return cmp.Or(cmp.Compare(hash(a+at), hash(b+at)), cmp.Compare(a, b))
	})
	return others[n-1]
}

// hash is FNV-1a with the finaliser of MurmurHash3, without which the places of
// names that differ in their last letter only would be near each other.
func hash(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // never fails
	x := h.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
