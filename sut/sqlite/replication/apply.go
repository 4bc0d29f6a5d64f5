package replication

import (
	"errors"
	"fmt"
	"time"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

func (f *follower) push(a arrival) error {
	for {
		f.mu.Lock()
		if f.bytes < queueBytes || len(f.queue) == 0 {
			f.queue = append(f.queue, a)
			f.bytes += a.size()
			f.wake()
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

func (a arrival) size() int {
	if a.entry == nil {
		return 64
	}
	return 64 + len(a.entry.Changes)
}

func (f *follower) applyAll() {
	defer close(f.applied)
	for {
		batch, drops := f.due()
		if len(batch) == 0 {
			return
		}
		err := f.apply(batch, drops)
		switch {
		case err == nil:
			continue
		case f.applying.Err() != nil:
			return
		case errors.Is(err, replog.ErrSchema):
			f.silence()
			<-f.received
			f.giveUp(fmt.Errorf("%w: %w", errForGood, err))
			return
		case errors.Is(err, replog.ErrConflict):
			f.conflict(err, drops)
		default:
			f.r.complain(err)
		}
		f.mu.Lock()
		hurry := f.hurry
		if hurry {
			f.stuck = err
		}
		f.mu.Unlock()
		// In a hurry nobody receives who could mend it.
		if hurry || !replog.Pause(f.applying, heartbeatInterval) {
			return
		}
	}
}

// conflict throws away what was received and lets the receiver ask for a snapshot.
func (f *follower) conflict(err error, drops int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.drops != drops {
		return // the database has been replaced meanwhile
	}
	f.r.diverges(err.Error())
	f.r.logger.Error("this copy has diverged", "cause", err)
	f.forget()
	if f.link != nil {
		_ = f.link.Close()
	}
}

// due waits for the first arrival that may be applied, and returns it with those behind it that may be, too. They
// stay in the queue. It returns nothing when the end has come.
func (f *follower) due() (batch []arrival, drops int) {
	for {
		f.mu.Lock()
		hurry, changed := f.hurry, f.changed
		var wait time.Duration = -1
		bytes, entries := 0, 0
		for _, a := range f.queue {
			if left := f.r.cfg.Lag - time.Since(time.UnixMicro(a.atUS)); left > 0 && f.r.cfg.Lag > 0 && !hurry {
				// Where clocks differ nothing waits longer than the lag.
				wait = min(left, f.r.cfg.Lag)
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
		drops = f.drops
		f.mu.Unlock()
		if len(batch) > 0 || hurry {
			return batch, drops
		}
		var timer <-chan time.Time
		if wait > 0 {
			timer = time.After(wait)
		}
		select {
		case <-timer:
		case <-changed:
		case <-f.applying.Done():
			return nil, drops
		}
	}
}

func (f *follower) apply(batch []arrival, drops int) error {
	r := f.r
	unlock, err := r.db.LockWriter(f.applying)
	if err != nil {
		return err
	}
	f.mu.Lock()
	stale := f.drops != drops
	f.mu.Unlock()
	if stale {
		unlock()
		return nil
	}
	err = r.repeat(batch)
	if err == nil {
		f.mu.Lock()
		for _, a := range batch {
			f.bytes -= a.size()
		}
		clear(f.queue[:len(batch)])
		f.queue = f.queue[len(batch):]
		f.wake()
		f.mu.Unlock()
	}
	unlock()
	if err == nil {
		f.acknowledge(r.at())
	}
	return err
}

// repeat applies the entries of a batch. The write lock is held.
func (r *Node) repeat(batch []arrival) error {
	c, err := r.db.Conn()
	if err != nil {
		return err
	}
	var fresh []*replog.Entry
	for _, a := range batch {
		// Others are of a snapshot that came in between.
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
	r.lag = max(0, time.Since(time.UnixMicro(batch[len(batch)-1].atUS))) // clocks may differ
	r.reached()
	return nil
}

// reached lets clients read when the copy has what its primary had; the lock is held.
func (r *Node) reached() {
	if r.wanted >= 0 && r.position >= r.wanted && !r.diverged && r.connected {
		r.serves = true
		r.problem = ""
	}
}

// connects notes that a primary has let this replica in, and what it had then.
func (r *Node) connects(wanted int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connected, r.wanted = true, wanted
	if !r.serves {
		r.problem = fmt.Sprintf("catching up from position %d to %d", r.position, wanted)
	} else {
		r.problem = ""
	}
	r.reached()
}

func (r *Node) disconnected(cause error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.connected = false
	if r.diverged && cause != nil {
		r.problem = "the copy must be replaced: " + cause.Error()
	} else if cause != nil {
		r.problem = "not connected: " + cause.Error()
	}
}

// diverges takes the copy from its clients until it is replaced.
func (r *Node) diverges(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.diverged, r.serves, r.problem = true, false, why
}

func (r *Node) complain(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problem = err.Error()
}

func (r *Node) at() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.position
}
