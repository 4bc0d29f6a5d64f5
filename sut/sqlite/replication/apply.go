package replication

import (
	"errors"
	"fmt"
	"time"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// push appends to the queue. It waits while the queue is full.
func (f *follower) push(a arrival) error {
	for {
		f.mu.Lock()
		if f.bytes < queueBytes || len(f.queue) == 0 {
			f.queue = append(f.queue, a)
			f.bytes += a.size()
			f.notify()
			f.mu.Unlock()
			return nil
		}
		changed := f.changed
		f.mu.Unlock()
		select {
		case <-changed:
		case <-f.receiving.Done():
			return f.receiving.Err()
		}
	}
}

// size returns the estimated memory in bytes.
func (a arrival) size() int {
	if a.entry == nil {
		return 64
	}
	return 64 + len(a.entry.Changes)
}

// applyAll applies the queue until stopApplying, until the queue is drained, or until a permanent error.
func (f *follower) applyAll() {
	defer close(f.applyDone)
	for {
		batch, resets := f.nextBatch()
		if len(batch) == 0 {
			return
		}
		err := f.apply(batch, resets)
		switch {
		case err == nil:
			continue
		case f.applying.Err() != nil:
			return
		case errors.Is(err, replog.ErrSchema):
			f.stopReceiving()
			<-f.receiveDone
			f.fail(fmt.Errorf("%w: %w", errPermanent, err))
			return
		case errors.Is(err, replog.ErrConflict):
			f.conflict(err, resets)
		default:
			f.r.setProblem(err)
		}
		f.mu.Lock()
		draining := f.draining
		if draining {
			f.failure = err
		}
		f.mu.Unlock()
		// While draining, a retry cannot succeed: nothing more is received, so no snapshot can repair the copy.
		if draining || !replog.Pause(f.applying, heartbeatInterval) {
			return
		}
	}
}

// conflict discards the queue and closes the connection. The next connection asks for a snapshot. resets is the value
// when the conflict was found.
func (f *follower) conflict(err error, resets int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.resets != resets {
		return // a snapshot has replaced the database since then
	}
	f.r.setDiverged(err.Error())
	f.r.logger.Error("this copy has diverged from the primary and will be replaced", "cause", err)
	f.resetQueue()
	if f.link != nil {
		_ = f.link.Close()
	}
}

// nextBatch waits until the lag of the first arrival is over. It returns all arrivals whose lag is over, up to the
// limits of a batch, and the current number of resets. The arrivals stay in the queue. An empty batch means that
// applyAll must end.
func (f *follower) nextBatch() (batch []arrival, resets int) {
	for {
		f.mu.Lock()
		draining, changed := f.draining, f.changed
		var wait time.Duration = -1
		bytes, entries := 0, 0
		for _, a := range f.queue {
			rest := f.r.cfg.Lag - time.Since(time.UnixMicro(a.atUS))
			if rest > 0 && f.r.cfg.Lag > 0 && !draining {
				// If the clocks of the nodes differ, the wait must still not exceed the lag.
				wait = min(rest, f.r.cfg.Lag)
				break
			}
			batch = append(batch, a)
			bytes += a.size()
			if a.entry != nil {
				entries++
			}
			if entries == batchEntries || bytes > batchBytes {
				break
			}
		}
		resets = f.resets
		f.mu.Unlock()
		if len(batch) > 0 || draining {
			return batch, resets
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-timer:
		case <-changed:
		case <-f.applying.Done():
			return nil, resets
		}
	}
}

// apply applies a batch and removes it from the queue, unless the queue was reset since nextBatch.
func (f *follower) apply(batch []arrival, resets int) error {
	r := f.r
	unlock, err := r.db.LockWriter(f.applying)
	if err != nil {
		return err
	}
	f.mu.Lock()
	stale := f.resets != resets
	f.mu.Unlock()
	if stale {
		unlock()
		return nil
	}
	err = r.applyBatch(batch)
	if err == nil {
		f.mu.Lock()
		for _, a := range batch {
			f.bytes -= a.size()
		}
		clear(f.queue[:len(batch)])
		f.queue = f.queue[len(batch):]
		f.notify()
		f.mu.Unlock()
	}
	unlock()
	if err == nil {
		f.acknowledge(r.currentPosition())
	}
	return err
}

// applyBatch applies the entries of a batch in one transaction. The write lock is held.
func (r *Node) applyBatch(batch []arrival) error {
	c, err := r.db.Conn()
	if err != nil {
		return err
	}
	var fresh []*replog.Entry
	for _, a := range batch {
		// A snapshot may already contain the first entries.
		if position, _ := r.log.Last(); a.entry != nil && a.position > position {
			fresh = append(fresh, a.entry)
		}
	}
	if len(fresh) > 0 {
		err := replog.Transact(c, func() error {
			for _, e := range fresh {
				if err := r.log.Apply(e); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			r.log.Drop()
			return err
		}
		r.log.Committed()
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.position, r.epoch = r.log.Last()
	// The clocks of the nodes may differ, but the lag is never negative.
	r.lag = max(0, time.Since(time.UnixMicro(batch[len(batch)-1].atUS)))
	r.updateServes()
	return nil
}

// updateServes lets clients read if the copy has caught up with the primary. The lock is held.
func (r *Node) updateServes() {
	if r.catchUpTo >= 0 && r.position >= r.catchUpTo && !r.diverged && r.connected {
		r.serves = true
		r.problem = ""
	}
}

// setConnected records that the primary accepted this replica. catchUpTo is the primary's position at that time.
func (r *Node) setConnected(catchUpTo int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connected, r.catchUpTo = true, catchUpTo
	if !r.serves {
		r.problem = fmt.Sprintf("catching up from position %d to %d", r.position, catchUpTo)
	} else {
		r.problem = ""
	}
	r.updateServes()
}

func (r *Node) setDisconnected(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connected = false
	if r.diverged && cause != nil {
		r.problem = "the copy must be replaced, but the primary is not connected: " + cause.Error()
	} else if cause != nil {
		r.problem = "not connected: " + cause.Error()
	}
}

// setDiverged refuses reads until the copy is replaced.
func (r *Node) setDiverged(problem string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.diverged, r.serves, r.problem = true, false, problem
}

func (r *Node) setProblem(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problem = err.Error()
}

func (r *Node) currentPosition() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.position
}
