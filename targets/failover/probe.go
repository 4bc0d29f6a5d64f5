package failover

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// answer is the result of one probe.
type answer struct {
	node    string
	probed  time.Time // when the probe began
	arrived time.Time
	status  sut.ReplicationStatus
	err     error
}

// errNoPrimary is the result of a probe of the primary that takes no writes, because it has learned of a higher epoch.
// It counts as a refused probe.
var errNoPrimary = errors.New("it reports that it is no primary")

// health is what the last probes of a node found.
type health struct {
	pending  time.Time             // when the pending probe began; zero = no probe is pending
	status   sut.ReplicationStatus // of the last probe that succeeded
	err      error                 // of the last probe
	answered time.Time             // when the last probe succeeded
	refused  int                   // failed probes since then, timeouts not counted
}

// probe starts a probe of every node that has no pending probe. It first records the
// answers that arrived since the last round, so that these nodes are probed again now.
// Without that, an old answer could make a busy node count as dead.
func (s *Supervisor) probe(ctx context.Context) {
	s.drain()
	for _, node := range s.nodes {
		h := s.health[node]
		if !h.pending.IsZero() {
			continue
		}
		h.pending = time.Now()
		probed := h.pending
		go func() {
			bounded, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			status, err := s.cfg.Databases.Probe(bounded, node)
			select {
			case s.answers <- answer{node, probed, time.Now(), status, err}:
			case <-ctx.Done():
			}
		}()
	}
}

// gather records answers until no probe is pending, or until patience has passed. It does
// not wait for a dead node whose probe began before since: a node that hangs must not
// delay the detection of other failures. A later round records its answer.
func (s *Supervisor) gather(ctx context.Context, patience time.Duration, since time.Time) {
	timeout := time.After(patience)
	for {
		s.drain()
		if !slices.ContainsFunc(s.nodes, func(node string) bool {
			probed := s.health[node].pending
			return !probed.IsZero() && (!s.dead(node) || !probed.Before(since))
		}) {
			return
		}
		select {
		case a := <-s.answers:
			s.record(a)
		case <-timeout:
			return
		case <-ctx.Done():
			return
		}
	}
}

// drain records the answers that have arrived.
func (s *Supervisor) drain() {
	for {
		select {
		case a := <-s.answers:
			s.record(a)
		default:
			return
		}
	}
}

// record updates a node's health. It ignores the answer to a probe that is not the
// pending one.
func (s *Supervisor) record(a answer) {
	h := s.health[a.node]
	if h == nil || a.probed != h.pending {
		return
	}
	h.pending, h.err = time.Time{}, a.err
	switch {
	case a.err == nil && a.node == s.roles.Primary && !a.status.Primary:
		h.status, h.err = a.status, errNoPrimary
		h.refused++
		s.epoch = max(s.epoch, a.status.Epoch)
	case a.err == nil:
		h.status, h.answered, h.refused = a.status, a.arrived, 0
		s.mu.Lock()
		s.last[a.node] = a.status
		s.mu.Unlock()
	case !errors.Is(a.err, context.DeadlineExceeded):
		h.refused++
	}
}

// cause says why a dead node is considered dead.
func (h *health) cause() string {
	if errors.Is(h.err, errNoPrimary) {
		return h.err.Error()
	}
	return fmt.Sprintf("no answer for %v", time.Since(h.answered).Round(time.Millisecond))
}

// dead reports whether a node is considered dead.
func (s *Supervisor) dead(node string) bool {
	h := s.health[node]
	return h.err != nil && (h.refused >= s.cfg.Failures || time.Since(h.answered) >= s.cfg.Silence)
}
