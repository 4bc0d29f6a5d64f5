package failover

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"
)

// suspension is a call of Suspend for the goroutine of Run.
type suspension struct {
	resumed <-chan struct{}
	done    chan<- error
}

// Suspend stops the supervision, so that the caller can stop all nodes for a while: until resume
// is called, no node is probed, and the time until then counts for no node as silence. Suspend
// returns an error and changes nothing if a node does not answer its probes.
func (s *Supervisor) Suspend(ctx context.Context) (resume func(), err error) {
	resumed, done := make(chan struct{}), make(chan error, 1)
	select {
	case s.suspends <- suspension{resumed, done}:
		return sync.OnceFunc(func() { close(resumed) }), <-done
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// suspend waits until the supervision is resumed, or until ctx ends.
func (s *Supervisor) suspend(ctx context.Context, c suspension) {
	s.drain()
	if s.unfence != nil {
		c.done <- errors.New("the primary is being replaced")
		return
	}
	for _, node := range s.nodes {
		if s.health[node].err != nil {
			c.done <- fmt.Errorf("the database %s does not answer", node)
			return
		}
	}
	c.done <- nil
	select {
	case <-c.resumed:
	case <-ctx.Done():
	}
	for _, h := range s.health {
		h.pending, h.answered = time.Time{}, time.Now() // an answer to an earlier probe is ignored
	}
}
