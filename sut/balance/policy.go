package balance

import (
	"math"
	"net/netip"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// candidate is a host as a policy sees it.
type candidate struct {
	available bool    // up, and not tried yet for this request
	inFlight  int     // requests that it is working on
	weight    float64 // its share, against the others' weights; above 0
	name      uint64  // hash of its name
	latency   float64 // its smoothed time to the first byte, in ns; 0 = nobody knows
	// credit is what weightedRoundRobin owes the host. It is the one field that a
	// policy changes, for the next call.
	credit float64
}

// turn is what a policy is told besides the candidates.
type turn struct {
	last   int    // the index that was picked before, -1 at first
	client uint64 // hash of the client's address
}

// policy picks the host for a request: the index of an available candidate, or
// -1 when there is none. Policies are pure functions of what they are given; who
// calls them keeps the candidates and the turn, and calls them one at a time.
//
// Only weighted_round_robin heeds weights: the other policies either know no
// shares (round_robin, ip_hash) or find out themselves what a host can do.
type policy func(candidates []candidate, t turn) int

// policies lists the policies by name.
func policies() map[string]policy {
	return map[string]policy{
		sut.PolicyRoundRobin:         roundRobin,
		sut.PolicyWeightedRoundRobin: weightedRoundRobin,
		sut.PolicyIPHash:             ipHash,
		sut.PolicyLeastConn:          leastConn,
		sut.PolicyLeastResponseTime:  leastResponseTime,
	}
}

// roundRobin picks the next one that is available. A host that is left out does
// not double the share of its neighbour.
func roundRobin(candidates []candidate, t turn) int {
	for step := range candidates {
		if i := (t.last + 1 + step) % len(candidates); candidates[i].available {
			return i
		}
	}
	return -1
}

// weightedRoundRobin picks each as often as its weight says, evenly mixed: with
// weights 5, 1, 1 the first is picked a a b a c a a and not a a a a a b c. Every
// pick owes all available hosts their weights and pays the sum to the one that
// is owed most. Source: nginx, ngx_http_upstream_round_robin.c, "smooth weighted
// round-robin balancing". No host is ever owed more than the sum, so one that
// was away does not come back to a burst.
func weightedRoundRobin(candidates []candidate, _ turn) int {
	best, sum := -1, 0.0
	for i := range candidates {
		c := &candidates[i]
		if !c.available {
			continue
		}
		sum += c.weight
		c.credit += c.weight
		if best < 0 || c.credit > candidates[best].credit {
			best = i
		}
	}
	if best >= 0 {
		candidates[best].credit -= sum
	}
	return best
}

// ipHash picks by the client's address, by highest random weight: each pair of
// client and host has a number, and the largest wins. A host that goes takes
// only its own clients along, and they return with it. Balancers that do not
// know each other agree. Source: Thaler and Ravishankar, "Using Name-Based
// Mappings to Increase Hit Rates", IEEE/ACM Transactions on Networking 6(1), 1998.
func ipHash(candidates []candidate, t turn) int {
	best, highest := -1, uint64(0)
	for i, c := range candidates {
		if score := mix(t.client ^ c.name); c.available && (best < 0 || score > highest) {
			best, highest = i, score
		}
	}
	return best
}

// leastConn picks one with the fewest requests in flight. Among equals it is
// the next in turn: the first of them would get all requests of an idle system.
func leastConn(candidates []candidate, t turn) int {
	return leastOf(candidates, t, func(c candidate) float64 { return float64(c.inFlight) })
}

// leastResponseTime picks the one that should answer first: the time that it
// needs for one request, times those that would be before this one and itself.
// One that nobody knows is tried with a single request, and after that gets more
// only when no other is known.
func leastResponseTime(candidates []candidate, t turn) int {
	return leastOf(candidates, t, func(c candidate) float64 {
		if c.latency == 0 && c.inFlight > 0 {
			return math.MaxFloat64 / 1e6 * float64(c.inFlight)
		}
		return c.latency * float64(c.inFlight+1)
	})
}

// leastOf picks an available candidate with the lowest score, among equals the
// next in turn.
func leastOf(candidates []candidate, t turn, score func(candidate) float64) int {
	best, lowest := -1, 0.0
	for step := range candidates {
		i := (t.last + 1 + step) % len(candidates)
		if !candidates[i].available {
			continue
		}
		if s := score(candidates[i]); best < 0 || s < lowest {
			best, lowest = i, s
		}
	}
	return best
}

// latency is the smoothed time to the first byte of a host: an exponentially
// weighted mean over time, so that it weighs seconds and not requests. Times are
// since any fixed moment. Without news it fades to 0, so that a host that was
// slow is tried again.
type latency struct {
	ns float64 // at the time; 0 = never observed
	at time.Duration
}

const (
	// latencyDecay is how long it takes until what was observed counts for 1/e.
	latencyDecay = 2 * time.Second
	// A failure counts as an answer that took twice as long as the host needs,
	// and at least failureFloor: one failure in a thousand hardly matters, and a
	// host that fails all requests at once is soon the slowest of all.
	failureFloor   = 10 * time.Millisecond
	failureCeiling = time.Minute
)

// now is the latency at a later time.
func (l latency) now(at time.Duration) float64 {
	return l.ns * math.Exp(-float64(at-l.at)/float64(latencyDecay))
}

// observe adds an answer, or a failure, that took so long.
func (l latency) observe(at, took time.Duration, failed bool) latency {
	faded, sample := l.now(at), float64(max(took, 1))
	switch {
	case failed:
		return latency{min(max(sample, 2*faded, float64(failureFloor)), float64(failureCeiling)), at}
	case l.ns == 0:
		return latency{sample, at}
	}
	share := 1 - math.Exp(-float64(at-l.at)/float64(latencyDecay))
	return latency{faded + sample*share, at}
}

// hashAddress hashes a client's "IP:port" without the port. What is no address
// hashes like all others of the kind.
func hashAddress(address string) uint64 {
	parsed, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0
	}
	ip := parsed.Addr().Unmap().As16()
	return hashBytes(ip[:])
}

// hashBytes is the same in every process: FNV-1a, and then a finaliser, because FNV
// alone hardly changes the high bits of short inputs.
func hashBytes[T string | []byte](data T) uint64 {
	hash := uint64(14695981039346656037)
	for i := range len(data) {
		hash = (hash ^ uint64(data[i])) * 1099511628211
	}
	return mix(hash)
}

// mix is the finaliser of SplitMix64: every bit of the input moves every bit of
// the result. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number
// generators", OOPSLA 2014.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
