package cell

import (
	"strings"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/ladder"
	"github.com/stagebench/stagebench/workloads"
	"github.com/stagebench/stagebench/workloads/pace"
)

// ceiling counts how many requests for images and assets an edge could answer at most: one edge with unlimited memory
// that fetches what it does not have, or has for longer than its lifetime. It sees the requests of all steps.
type ceiling struct {
	ttl     time.Duration // lifetime of everything; 0 = as the origin says
	fetched map[string]time.Time
}

// newCeiling returns the ceiling of a system with these knobs; nil if it does not have exactly one edge. Several edges
// would share the requests in an unknown way.
func newCeiling(k sut.Knobs) *ceiling {
	s := ladder.EdgeOf(k)
	if s.Hosts != 1 {
		return nil
	}
	return &ceiling{ttl: s.TTL, fetched: map[string]time.Time{}}
}

// step counts the requests of a step that began at start: n ops of a workload from first on.
func (c *ceiling) step(w workloads.Workload, s pace.Schedule, first, n uint64, start time.Time) (requests, reusable int64) {
	if c == nil {
		return 0, 0
	}
	for i := range n {
		op := w.Op(first + i)
		if op.Write || !sut.Shared(op.Path) {
			continue
		}
		requests++
		at := start.Add(s.At(i))
		if last, found := c.fetched[op.Path]; found && at.Sub(last) < c.lifetime(op.Path) {
			reusable++
		} else {
			c.fetched[op.Path] = at
		}
	}
	return requests, reusable
}

func (c *ceiling) lifetime(path string) time.Duration {
	switch _, query, _ := strings.Cut(path, "?"); {
	case c.ttl > 0:
		return c.ttl
	case query != "":
		return sut.VersionedLifetime
	}
	return sut.UnversionedLifetime
}
