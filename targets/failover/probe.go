package failover

import (
	"context"
	"errors"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// answer is what a probe found.
type answer struct {
	node      string
	asked, at time.Time
	status    sut.ReplicationStatus
	err       error
}

// health is what the last probes of a node said.
type health struct {
	asked    time.Time // when the probe began that is under way; zero = none is
	status   sut.ReplicationStatus
	err      error
	answered time.Time // the last time
	refused  int       // probes in a row since
}

// probe asks all nodes that are not being asked already. What has come since the last
// round is taken first: nobody is judged by that alone.
func (s *Supervisor) probe(ctx context.Context) {
	s.drain()
	for _, node := range s.nodes {
		h := s.seen[node]
		if !h.asked.IsZero() {
			continue
		}
		h.asked = time.Now()
		asked := h.asked
		go func() {
			bounded, cancel := context.WithTimeout(ctx, probeTimeout)
			defer cancel()
			status, err := s.cfg.Databases.Probe(bounded, node)
			select {
			case s.answers <- answer{node, asked, time.Now(), status, err}:
			case <-ctx.Done():
			}
		}()
	}
}

// gather takes answers until every node has answered that is alive, or was probed since a
// time, but no longer than patience: a node that hangs does not delay the others. Its
// answer is taken in a later round.
func (s *Supervisor) gather(ctx context.Context, patience time.Duration, since time.Time) {
	enough := time.After(patience)
	for {
		s.drain()
		if !slices.ContainsFunc(s.nodes, func(node string) bool {
			asked := s.seen[node].asked
			return !asked.IsZero() && (!s.dead(node) || !asked.Before(since))
		}) {
			return
		}
		select {
		case a := <-s.answers:
			s.take(a)
		case <-enough:
			return
		case <-ctx.Done():
			return
		}
	}
}

// drain takes the answers that have come.
func (s *Supervisor) drain() {
	for {
		select {
		case a := <-s.answers:
			s.take(a)
		default:
			return
		}
	}
}

// take notes an answer, unless it is to a probe that nobody waits for any more.
func (s *Supervisor) take(a answer) {
	h := s.seen[a.node]
	if h == nil || a.asked != h.asked {
		return
	}
	h.asked, h.err = time.Time{}, a.err
	switch {
	case a.err == nil:
		h.status, h.answered, h.refused = a.status, a.at, 0
		s.mu.Lock()
		s.last[a.node] = a.status
		s.mu.Unlock()
	case !errors.Is(a.err, context.DeadlineExceeded):
		h.refused++
	}
}

// dead reports whether a node is taken for dead.
func (s *Supervisor) dead(node string) bool {
	h := s.seen[node]
	return h.err != nil && (h.refused >= s.cfg.Failures || time.Since(h.answered) >= s.cfg.Silence)
}
