package sqlite

import (
	"errors"
	"fmt"
	"time"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// push adds to the queue, when it has room.
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

// applyAll applies what is due until it is told to end, or cannot.
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
			f.stop(fmt.Errorf("%w: %w", errForGood, err))
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
		if hurry {
			return // nobody receives who could mend it
		}
		select {
		case <-f.applying.Done():
			return
		case <-time.After(beatInterval):
		}
	}
}

// stop ends a replica that cannot go on.
func (f *follower) stop(err error) {
	f.mu.Lock()
	f.stuck = err
	f.mu.Unlock()
	f.silence()
	<-f.received
	f.r.disconnected(err)
	f.r.server.cfg.Log.Error("replication ends", "primary", f.primary.Node, "cause", err)
}

// conflict throws away what was received and lets the receiver ask for a
// snapshot.
func (f *follower) conflict(err error, drops int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.drops != drops {
		return // the database has been replaced meanwhile
	}
	f.r.diverges(err.Error())
	f.r.server.cfg.Log.Error("this copy has diverged", "cause", err)
	f.queue, f.bytes = nil, 0
	f.drops++
	f.wake()
	if f.link != nil {
		_ = f.link.Close()
	}
}

// due waits for the first arrival that may be applied, and returns it with
// those behind it that may be, too. They stay in the queue. It returns nothing
// when the end has come.
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

// apply applies a batch in one transaction, takes it out of the queue and
// acknowledges it.
func (f *follower) apply(batch []arrival, drops int) error {
	r := f.r
	writer := r.server.writer
	if err := writer.await(f.applying.Done, true); err != nil {
		return err
	}
	f.mu.Lock()
	stale := f.drops != drops
	f.mu.Unlock()
	if stale {
		writer.leave()
		return nil
	}
	err := r.repeat(batch)
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
	writer.leave()
	if err == nil {
		f.acknowledge(r.at())
	}
	return err
}

// repeat applies the entries of a batch. The writer's turn is held.
func (r *replication) repeat(batch []arrival) error {
	c := r.server.writer.conn
	if c == nil {
		return errNoDatabase
	}
	began := false
	for _, a := range batch {
		if position, _ := r.log.Last(); a.entry == nil || a.position <= position {
			continue // of a snapshot that came in between
		}
		if !began {
			if err := c.exec("begin immediate"); err != nil {
				return err
			}
			began = true
		}
		if err := r.log.Apply(a.entry); err != nil {
			r.log.Drop()
			_ = c.exec("rollback")
			return err
		}
	}
	if began {
		if err := c.exec("commit"); err != nil {
			r.log.Drop()
			_ = c.exec("rollback")
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

// errNoDatabase is met between a snapshot that could not be opened and the
// next one.
var errNoDatabase = errors.New("there is no database: it was being replaced")

// reached lets clients read when the copy has what its primary had; the lock
// is held.
func (r *replication) reached() {
	if r.wanted >= 0 && r.position >= r.wanted && !r.diverged && r.connected {
		r.serves = true
		r.problem = ""
	}
}

// connects notes that a primary has let this replica in, and what it had then.
func (r *replication) connects(wanted int64) {
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

// disconnected notes why nothing is received.
func (r *replication) disconnected(cause error) {
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
func (r *replication) diverges(why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.diverged, r.serves, r.problem = true, false, why
}

func (r *replication) complain(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.problem = err.Error()
}

// at is the position of this copy.
func (r *replication) at() int64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.position
}
