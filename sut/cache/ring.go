package cache

import (
	"cmp"
	"hash/fnv"
	"math"
	"slices"
	"strconv"
)

// Parameters of the ring.
const (
	slots  = 4096 // each key belongs to one slot
	points = 128  // points of each host on the circle
	// bound limits the slots of a host to bound times the mean. With three hosts that is
	// 38.3 % of all slots.
	bound = 1.15
)

// Ring maps keys to hosts. The mapping depends only on the names of the hosts. So all
// clients with the same hosts agree, and a client can read and delete the values that
// another one stored.
//
// The algorithm is consistent hashing with bounded loads. Keys are divided into slots.
// A slot belongs to the first host clockwise that has fewer slots than its bound.
// Source: Mirrokni, Thorup and Zadimoghaddam, Consistent Hashing with Bounded Loads,
// SODA 2018 (arXiv 1608.01350, 2016). The paper bounds the current load of a host. This
// ring bounds the number of slots instead: if keys moved with the load, clients could
// delete a key on the wrong host. A popular key can therefore still overload its host.
//
// When a host is added or removed, a few slots of the other hosts move too: slots that
// a full host had passed on to the next one.
type Ring struct {
	names  []string      // sorted
	owners [slots]uint16 // index in names, by slot
}

// point is a position of a host on the circle.
type point struct {
	at   uint64
	host uint16
}

// NewRing returns the ring of the hosts with these names. Duplicate names count once.
func NewRing(names []string) *Ring {
	r := &Ring{names: slices.Compact(slices.Sorted(slices.Values(names)))}
	circle := make([]point, 0, len(r.names)*points)
	for i, name := range r.names {
		for p := range points {
			circle = append(circle, point{hash(name + "/" + strconv.Itoa(p)), uint16(i)})
		}
	}
	slices.SortFunc(circle, func(a, b point) int {
		return cmp.Or(cmp.Compare(a.at, b.at), cmp.Compare(a.host, b.host))
	})
	load := make([]int, len(r.names))
	for slot := range r.owners {
		r.owners[slot] = ownerOf(circle, slot, load)
		load[r.owners[slot]]++
	}
	return r
}

// capacity returns the maximum number of slots of a host, in a ring of that many hosts.
func capacity(hosts int) int { return int(math.Ceil(bound * slots / float64(hosts))) }

// ownerOf returns the first host clockwise of a slot that is below its capacity. load
// is the number of slots of each host.
func ownerOf(circle []point, slot int, load []int) uint16 {
	at := hash("slot/" + strconv.Itoa(slot))
	from, _ := slices.BinarySearchFunc(circle, at, func(p point, at uint64) int { return cmp.Compare(p.at, at) })
	for i := range circle {
		if p := circle[(from+i)%len(circle)]; load[p.host] < capacity(len(load)) {
			return p.host
		}
	}
	panic("cache: all hosts of the ring are full: the sum of their capacities is too small")
}

// Owner returns the name of the host of a key.
func (r *Ring) Owner(key string) string { return r.names[r.owners[hash(key)%slots]] }

// nthOwner returns the host of a key when n earlier hosts do not answer; 0 = the owner.
// All clients with the same hosts agree on it. The order after the owner is that of
// rendezvous hashing with the slot of the key, so the keys of a dead host are spread
// over all other hosts.
func (r *Ring) nthOwner(key string, n int) string {
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

// hash is FNV-1a with the finaliser of MurmurHash3. Without the finaliser, names that
// differ only in their last letter would be close together on the circle.
func hash(text string) uint64 {
	h := fnv.New64a()
	_, _ = h.Write([]byte(text)) // never fails
	x := h.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
