package results

// StaticReads counts the requests for images and assets, as the clients see them and as the web hosts do. Between them
// are the edges. A response that an edge only revalidated is a request at the web hosts, almost without bytes.
type StaticReads struct {
	Requests       int64 `json:"requests"` // successes
	Bytes          int64 `json:"bytes"`    // of the bodies that clients got
	OriginRequests int64 `json:"origin_requests"`
	OriginBytes    int64 `json:"origin_bytes"`
	// Of Scheduled requests, Reusable are those that one edge with unlimited memory could have answered. Both are 0 with
	// several edges, which share the requests in an unknown way.
	Scheduled int64 `json:"scheduled,omitempty"`
	Reusable  int64 `json:"reusable,omitempty"`
}

// HitRatio returns the share of the requests that did not reach the web hosts. It is measured at both ends: no edge is
// asked.
func (s StaticReads) HitRatio() float64 {
	return 1 - float64(s.OriginRequests)/float64(max(s.Requests, 1))
}

// ByteHitRatio returns the share of the bytes that the web hosts did not send.
func (s StaticReads) ByteHitRatio() float64 {
	return 1 - float64(s.OriginBytes)/float64(max(s.Bytes, 1))
}

// Ceiling returns the highest possible hit ratio: what the lifetimes of the responses permit. ok = it is known.
func (s StaticReads) Ceiling() (ratio float64, ok bool) {
	return float64(s.Reusable) / float64(max(s.Scheduled, 1)), s.Scheduled > 0
}
