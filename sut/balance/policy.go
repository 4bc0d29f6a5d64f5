package balance

import (
	"math"
	"net/netip"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// candidate is the state of a host that a policy uses.
type candidate struct {
	available bool    // up, and not tried yet for this request
	inFlight  int     // requests in flight
	weight    float64 // its share, relative to the other weights; above 0
	name      uint64  // hash of its name
	latency   float64 // smoothed time to the first byte, in ns; 0 = not measured yet
	// credit is the number of picks that weightedRoundRobin owes the host, in units
	// of weight. It is the only field that a policy changes, for the next call.
	credit float64
}

// turn holds the other inputs of a policy.
type turn struct {
	last   int    // the index of the previous pick, -1 before the first
	client uint64 // hash of the client's address
}

// policy picks the host for a request. It returns the index of an available
// candidate, or -1 when there is none. A policy keeps no state of its own: the
// caller keeps the candidates and the turn, and calls it one at a time.
//
// Only weighted_round_robin uses weights. round_robin and ip_hash give all hosts
// equal shares, and the other policies measure the capacity of a host.
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

// roundRobin picks the next available host after the previous pick.
func roundRobin(candidates []candidate, t turn) int {
	for step := range candidates {
		if i := (t.last + 1 + step) % len(candidates); candidates[i].available {
			return i
		}
	}
	return -1
}

// weightedRoundRobin picks hosts in proportion to their weights, and mixes them
// evenly: weights 5, 1, 1 give a a b a c a a, not a a a a a b c. Each pick adds its
// weight to the credit of every available host, picks the host with the highest
// credit, and subtracts the sum of the weights from that credit. Source: nginx,
// ngx_http_upstream_round_robin.c, "smooth weighted round-robin balancing". The credit
// of a host never exceeds the sum, so a host that was down gets no burst on return.
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

// ipHash picks by the client's address, with highest random weight (rendezvous)
// hashing: each pair of client and host has a score, and the highest score wins.
// When a host goes down, only its own clients move, and they move back when it is
// up again. Independent balancers pick the same host. Source: Thaler and Ravishankar,
// "Using Name-Based Mappings to Increase Hit Rates", IEEE/ACM Transactions on
// Networking 6(1), 1998.
func ipHash(candidates []candidate, t turn) int {
	best, highest := -1, uint64(0)
	for i, c := range candidates {
		if score := mix(t.client ^ c.name); c.available && (best < 0 || score > highest) {
			best, highest = i, score
		}
	}
	return best
}

// leastConn picks a host with the fewest requests in flight. Equal hosts are picked
// in turn: otherwise the first host would get all requests of an idle system.
func leastConn(candidates []candidate, t turn) int {
	return leastOf(candidates, t, func(c candidate) float64 { return float64(c.inFlight) })
}

// leastResponseTime picks the host with the shortest expected response time: its
// latency times the number of requests in flight, this one included. A host without
// a measured latency gets one request. It gets more only when no available host has
// a measured latency.
func leastResponseTime(candidates []candidate, t turn) int {
	return leastOf(candidates, t, func(c candidate) float64 {
		if c.latency == 0 && c.inFlight > 0 {
			return math.MaxFloat64 / 1e6 * float64(c.inFlight)
		}
		return c.latency * float64(c.inFlight+1)
	})
}

// leastOf picks an available candidate with the lowest score. Equal candidates are
// picked in turn.
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

// latency is the smoothed time to the first byte of a host: a mean whose weights
// decay exponentially with age. The decay depends on time, not on the number of
// requests. Without new observations it decays to 0, so that a slow host is tried
// again. Times are offsets from one fixed moment.
type latency struct {
	ns float64       // value at the time at; 0 = never observed
	at time.Duration // time of the last observation
}

const (
	// latencyDecay is the time after which the weight of an observation is 1/e.
	latencyDecay = 2 * time.Second
	// A failure counts as an answer that took twice the current latency, and at least
	// failureFloor. So one failure in a thousand has little effect, and a host that
	// fails all requests quickly does not attract more requests by looking fast.
	failureFloor   = 10 * time.Millisecond
	failureCeiling = time.Minute
)

// now returns the latency at a later time, in ns.
func (l latency) now(at time.Duration) float64 {
	return l.ns * math.Exp(-float64(at-l.at)/float64(latencyDecay))
}

// observe returns the latency after one more answer or failure.
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

// hashAddress hashes the IP of an "IP:port" address. It returns 0 when the address
// is invalid.
func hashAddress(address string) uint64 {
	parsed, err := netip.ParseAddrPort(address)
	if err != nil {
		return 0
	}
	ip := parsed.Addr().Unmap().As16()
	return hashBytes(ip[:])
}

// hashBytes returns a hash that is the same in every process: FNV-1a with a
// finaliser. FNV-1a alone leaves the high bits of short inputs almost unchanged.
func hashBytes[T string | []byte](data T) uint64 {
	hash := uint64(14695981039346656037)
	for i := range len(data) {
		hash = (hash ^ uint64(data[i])) * 1099511628211
	}
	return mix(hash)
}

// mix is the finaliser of SplitMix64: every bit of the input affects every bit of
// the result. Source: Steele, Lea, Flood, "Fast splittable pseudorandom number
// generators", OOPSLA 2014.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}
