package failover

import "github.com/stagebench/stagebench/sut"

// best returns the most advanced replica that answers, "" if no replica that serves answers. A replica that has yet to
// catch up is better if it holds more: it may be the only one with a write that was acknowledged. Alone it is not
// promoted, because the old primary, which may return, holds more. With Sync, a replica counts only if it has what its
// primary inherited.
func (s *Supervisor) best() string {
	best := s.mostAdvanced("", func(r sut.ReplicationStatus) bool { return r.Serves })
	if best == "" {
		return ""
	}
	return s.mostAdvanced(best, func(r sut.ReplicationStatus) bool { return r.Serves || r.CatchingUp })
}

// mostAdvanced returns the replica that answers and holds most: best, or another one that is eligible. A node that is
// already a primary of a later epoch wins: its promotion succeeded, but the confirmation came too late.
func (s *Supervisor) mostAdvanced(best string, eligible func(sut.ReplicationStatus) bool) string {
	for _, node := range s.nodes {
		h := s.health[node]
		outdated := h.status.Primary && h.status.Epoch <= s.roles.Epoch
		lacks := s.cfg.Sync && h.status.Before(s.inherits)
		if node == s.roles.Primary || h.err != nil || !eligible(h.status) || outdated || lacks {
			continue
		}
		if best == "" || s.health[best].status.Before(h.status) {
			best = node
		}
	}
	return best
}
