package results

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"slices"
)

// Join returns one step for several slices of a measurement at one rate: their sums, and their events and outages one
// after the other. The caller sets the distributions, which no sum can give, and judges the result. A count that is
// unknown in one slice is unknown.
func Join(parts []Step) Step {
	s := parts[0]
	s.Ops, s.Causes, s.Statuses = maps.Clone(s.Ops), maps.Clone(s.Causes), maps.Clone(s.Statuses)
	s.Events, s.Outages, s.Notes = slices.Clone(s.Events), slices.Clone(s.Outages), slices.Clone(s.Notes)
	s.Hosts, s.Nodes = slices.Clone(s.Hosts), slices.Clone(s.Nodes)
	s.CacheNodes, s.Figures = slices.Clone(s.CacheNodes), slices.Clone(s.Figures)
	for _, part := range parts[1:] {
		s.add(part)
	}
	s.OpsHash = joinedHash(parts)
	s.SentRPS = float64(s.Ledger.Sent) / max(s.Seconds, 1e-9)
	s.Invalid, s.Warnings, s.OwnLatencyNS = nil, nil, nil
	return s
}

// joinedHash returns a hash of the op sequences of several slices.
func joinedHash(parts []Step) string {
	if len(parts) == 1 {
		return parts[0].OpsHash
	}
	digest := sha256.New()
	for _, part := range parts {
		digest.Write([]byte(part.OpsHash + "\n"))
	}
	return hex.EncodeToString(digest.Sum(nil)[:16])
}

func (s *Step) add(part Step) {
	begin := int64(s.Seconds * 1e9)
	s.CompletedRPS = mean(s.CompletedRPS, s.Seconds, part.CompletedRPS, part.Seconds)
	s.addUsage(part)
	s.Ledger = s.Ledger.plus(part.Ledger)
	s.BytesIn += part.BytesIn
	s.BytesOut += part.BytesOut
	for name, op := range part.Ops {
		s.Ops[name] = s.Ops[name].plus(op)
	}
	addCounts(&s.Causes, part.Causes)
	addCounts(&s.Statuses, part.Statuses)
	for _, e := range part.Events {
		e.AtNS += begin
		s.Events = append(s.Events, e)
	}
	for _, out := range part.Outages {
		out.FromNS, out.ToNS = out.FromNS+begin, out.ToNS+begin
		s.Outages = append(s.Outages, out)
	}
	s.Autoscaling = s.Autoscaling.join(part.Autoscaling, begin)
	s.Notes = union(s.Notes, part.Notes)
	s.addFigures(part.Figures)
	s.addCacheNodes(part.CacheNodes)
	switch { // without judged reads there are no stale ones
	case s.Stale == nil:
		s.Stale = part.Stale
	case part.Stale != nil:
		s.Stale = new(s.Stale.plus(*part.Stale))
	}
	s.Cache = known(s.Cache, part.Cache, func(a, b CacheReads) CacheReads {
		return CacheReads{Hits: a.Hits + b.Hits, Misses: a.Misses + b.Misses}
	})
	s.Static = known(s.Static, part.Static, func(a, b StaticReads) StaticReads {
		return StaticReads{
			Requests: a.Requests + b.Requests, Bytes: a.Bytes + b.Bytes,
			OriginRequests: a.OriginRequests + b.OriginRequests, OriginBytes: a.OriginBytes + b.OriginBytes,
			Scheduled: a.Scheduled + b.Scheduled, Reusable: a.Reusable + b.Reusable,
		}
	})
	s.Journeys = known(s.Journeys, part.Journeys, func(a, b Journeys) Journeys {
		return Journeys{
			Begun: a.Begun + b.Begun, Joined: a.Joined + b.Joined, Ended: a.Ended + b.Ended, GivenUp: a.GivenUp + b.GivenUp,
			PlannedOps: a.PlannedOps + b.PlannedOps, NotDue: a.NotDue + b.NotDue,
		}
	})
	s.Database = known(s.Database, part.Database, func(a, b DatabaseCalls) DatabaseCalls {
		return DatabaseCalls{Reads: a.Reads + b.Reads, Writes: a.Writes + b.Writes}
	})
	s.ServerCount = known(s.ServerCount, part.ServerCount, plus)
}

// Add adds the writes of another measurement.
func (w *Writes) Add(o Writes) {
	w.Acknowledged, w.Lost, w.Unread = w.Acknowledged+o.Acknowledged, w.Lost+o.Lost, w.Unread+o.Unread
	w.Ambiguous, w.AmbiguousApplied = w.Ambiguous+o.Ambiguous, w.AmbiguousApplied+o.AmbiguousApplied
	w.Conflicts += o.Conflicts
	addCounts(&w.Discarded, o.Discarded)
}

// addCounts adds counts to those of a map, which may be nil.
func addCounts[K comparable](to *map[K]int64, more map[K]int64) {
	for key, n := range more {
		if *to == nil {
			*to = map[K]int64{}
		}
		(*to)[key] += n
	}
}

// addUsage adds the seconds of a slice, and what client, hosts and nodes used in them.
func (s *Step) addUsage(o Step) {
	c := &s.Client
	c.CPUShare = mean(c.CPUShare, s.Seconds, o.Client.CPUShare, o.Seconds)
	c.OutsideShare = mean(c.OutsideShare, s.Seconds, o.Client.OutsideShare, o.Seconds)
	c.CPUSeconds += o.Client.CPUSeconds
	c.RealTime, c.OutsideKnown = c.RealTime && o.Client.RealTime, c.OutsideKnown && o.Client.OutsideKnown
	c.StallMaxNS, c.StallSumNS = max(c.StallMaxNS, o.Client.StallMaxNS), c.StallSumNS+o.Client.StallSumNS
	c.GCPauseMaxNS = max(c.GCPauseMaxNS, o.Client.GCPauseMaxNS)
	c.GCPauseSumNS += o.Client.GCPauseSumNS
	c.Connections += o.Client.Connections
	for _, h := range o.Hosts {
		i := slices.IndexFunc(s.Hosts, func(a HostUsage) bool { return a.Host == h.Host })
		if i < 0 {
			s.Hosts = append(s.Hosts, h)
			continue
		}
		a := &s.Hosts[i]
		a.ThrottledShare = mean(a.ThrottledShare, s.Seconds, h.ThrottledShare, o.Seconds)
		a.CPUShare = mean(a.CPUShare, s.Seconds, h.CPUShare, o.Seconds)
		a.CPUSeconds += h.CPUSeconds
		a.ThrottledSeconds += h.ThrottledSeconds
		a.Isolated = a.Isolated && h.Isolated
	}
	for _, n := range o.Nodes {
		i := slices.IndexFunc(s.Nodes, func(a NodeUsage) bool { return a.Node == n.Node })
		if i < 0 {
			s.Nodes = append(s.Nodes, n)
			continue
		}
		s.Nodes[i].CPUSeconds += n.CPUSeconds
		s.Nodes[i].ThrottledSeconds += n.ThrottledSeconds
		s.Nodes[i].WaitSeconds += n.WaitSeconds
		s.Nodes[i].RSSBytes = n.RSSBytes
	}
	s.Seconds += o.Seconds
}

// addCacheNodes adds counts, and replaces contents by those at the end of the slice. A node that did not answer in one
// of the slices is left out.
func (s *Step) addCacheNodes(nodes []CacheNode) {
	find := func(in []CacheNode, node string) int {
		return slices.IndexFunc(in, func(n CacheNode) bool { return n.Node == node })
	}
	s.CacheNodes = slices.DeleteFunc(s.CacheNodes, func(a CacheNode) bool { return find(nodes, a.Node) < 0 })
	for i, a := range s.CacheNodes {
		n := nodes[find(nodes, a.Node)]
		n.Hits, n.Misses = n.Hits+a.Hits, n.Misses+a.Misses
		n.Evictions, n.Expired = n.Evictions+a.Evictions, n.Expired+a.Expired
		n.SinceStart = n.SinceStart || a.SinceStart
		n.WriteBack = known(a.WriteBack, n.WriteBack, func(a, b WriteBack) WriteBack {
			b.Flushed, b.Refused = b.Flushed+a.Flushed, b.Refused+a.Refused
			return b
		})
		s.CacheNodes[i] = n
	}
}

// addFigures adds counters, and replaces gauges by those at the end of the slice. A figure that no node reported in
// one of the slices is unknown.
func (s *Step) addFigures(more []Figure) {
	for i, a := range s.Figures {
		j := slices.IndexFunc(more, func(f Figure) bool { return f.Name == a.Name })
		if j < 0 {
			s.Figures[i].Value = nil
			continue
		}
		f := more[j]
		if f.Kind == "counter" {
			f.Value = known(a.Value, f.Value, plus)
		}
		f.Unknown, f.SinceStart = union(a.Unknown, f.Unknown), union(a.SinceStart, f.SinceStart)
		s.Figures[i] = f
	}
	for _, f := range more {
		if s.Figure(f.Name) == nil {
			f.Value = nil
			s.Figures = append(s.Figures, f)
		}
	}
}

// union returns all different texts, in the order of their first appearance.
func union(a, b []string) []string {
	all := slices.Clone(a)
	for _, text := range b {
		if !slices.Contains(all, text) {
			all = append(all, text)
		}
	}
	return all
}

// known returns the sum of two values, nil if one of them is unknown.
func known[T any](a, b *T, sum func(a, b T) T) *T {
	if a == nil || b == nil {
		return nil
	}
	return new(sum(*a, *b))
}

func plus(a, b int64) int64 { return a + b }

// mean returns the mean of two values with weights.
func mean(a, weightA, b, weightB float64) float64 {
	return (a*weightA + b*weightB) / max(weightA+weightB, 1e-9)
}

func (l Ledger) plus(o Ledger) Ledger {
	return Ledger{
		Scheduled: l.Scheduled + o.Scheduled, Unsent: l.Unsent + o.Unsent, ConnectError: l.ConnectError + o.ConnectError,
		Sent: l.Sent + o.Sent, OK: l.OK + o.OK, HTTPError: l.HTTPError + o.HTTPError,
		TransportError: l.TransportError + o.TransportError, Timeout: l.Timeout + o.Timeout,
		InFlight: l.InFlight + o.InFlight, SessionLost: l.SessionLost + o.SessionLost,
		CheckFailed: l.CheckFailed + o.CheckFailed, Redirected: l.Redirected + o.Redirected,
	}
}

func (s OpStats) plus(o OpStats) OpStats {
	edge := maps.Clone(s.Edge)
	addCounts(&edge, o.Edge)
	return OpStats{
		BytesIn: s.BytesIn + o.BytesIn, Edge: edge, Cached: s.Cached + o.Cached,
		Count: s.Count + o.Count, Errors: s.Errors + o.Errors, SessionLost: s.SessionLost + o.SessionLost,
		OverSLO: s.OverSLO + o.OverSLO, OverSLOByClient: s.OverSLOByClient + o.OverSLOByClient,
		UnsentByClient: s.UnsentByClient + o.UnsentByClient,
	}
}

func (s Stale) plus(o Stale) Stale {
	return Stale{
		Reads: s.Reads + o.Reads, Stale: s.Stale + o.Stale, RYWViolations: s.RYWViolations + o.RYWViolations,
		Hits: s.Hits + o.Hits, StaleHits: s.StaleHits + o.StaleHits,
	}
}
