package balance

// candidate is a host as a policy sees it.
type candidate struct {
	available bool // up, and not tried yet for this request
	inFlight  int  // requests that it is working on
}

// policy picks the host for a request: the index of an available candidate, or
// -1 when there is none. last is the index that it picked before, -1 at first.
// Policies are pure functions; who calls them keeps last, and calls them one at
// a time.
type policy func(candidates []candidate, last int) int

// policies lists the policies by name.
func policies() map[string]policy {
	return map[string]policy{PolicyRoundRobin: roundRobin, PolicyLeastConn: leastConn}
}

// roundRobin picks the next one that is available. A host that is left out does
// not double the share of its neighbour.
func roundRobin(candidates []candidate, last int) int {
	for step := range candidates {
		if i := (last + 1 + step) % len(candidates); candidates[i].available {
			return i
		}
	}
	return -1
}

// leastConn picks one with the fewest requests in flight. Among equals it is
// the next in turn: the first of them would get all requests of an idle system.
func leastConn(candidates []candidate, last int) int {
	best := -1
	for step := range candidates {
		i := (last + 1 + step) % len(candidates)
		if candidates[i].available && (best < 0 || candidates[i].inFlight < candidates[best].inFlight) {
			best = i
		}
	}
	return best
}
