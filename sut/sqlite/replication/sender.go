package replication

import (
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// sender sends the log to one replica and receives its acknowledgements.
type sender struct {
	*replog.Feed
	r     *Node
	hello replog.Hello

	// Guarded by Node.mu.
	sent  int64 // position of the last entry that the replica may have
	acked int64
}

// Serve sends the log to a replica until the replica disconnects or the node stops. It reads from in and writes to
// link. The caller closes the connection.
func (r *Node) Serve(link net.Conn, in io.Reader) {
	f := &sender{Feed: replog.NewFeed(link, in, heartbeatInterval, r.clientsGone), r: r}
	defer f.retainAfter(math.MaxInt64)
	err := f.greet()
	if err == nil {
		err = f.stream()
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		r.logger.Warn("sending to a replica", "replica", f.hello.Node, "cause", err)
	}
}

// greet reads the Hello and answers it, with a snapshot if necessary. Afterwards hello.Position is the last position
// that the replica has.
func (f *sender) greet() error {
	if err := f.Hello(replog.KindHello, &f.hello); err != nil {
		return err
	}
	if to := f.hello.To; to != f.r.cfg.Node {
		// The replica uses an old address of another node. That node's epoch must not fence this one.
		refusal := replog.Refusal{Reason: fmt.Sprintf("this is node %s, not %s: the address is wrong", f.r.cfg.Node, to)}
		return errors.Join(f.Refuse(refusal), io.EOF)
	}
	if err := f.r.cfg.CheckMember(f.hello.Node); err != nil {
		return errors.Join(f.Refuse(replog.Refusal{Reason: err.Error()}), err)
	}
	f.r.fence(f.hello.Epoch, f.hello.Node)
	return f.r.db.Read(f.welcome)
}

func (f *sender) welcome(disk *sqlite.Conn) error {
	f.retainAfter(f.hello.Position)
	welcome, refusal, err := f.answer(disk)
	switch {
	case err != nil:
		return err
	case refusal != nil:
		return errors.Join(f.Refuse(refusal), io.EOF)
	}
	if err := replog.WriteJSON(f, replog.KindWelcome, welcome); err != nil || !welcome.Snapshot {
		return err
	}
	f.r.logger.Info("replica gets a snapshot", "replica", f.hello.Node, "position", f.hello.Position)
	return f.snapshot(disk)
}

// retainAfter makes the log keep the entries after a position for this replica. MaxInt64 = none.
func (f *sender) retainAfter(position int64) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.r.retain[f] = position; position == math.MaxInt64 {
		delete(f.r.retain, f)
	}
}

// answer returns either the Welcome or the Refusal of a replica. A replica needs no snapshot if this log has its last
// entry, with the same epoch. Then all earlier entries are equal, too: an epoch has one primary, and that primary wrote
// its entries after the same earlier entries.
func (f *sender) answer(disk *sqlite.Conn) (*replog.Welcome, *replog.Refusal, error) {
	schema, err := replog.Schema(disk)
	if err != nil {
		return nil, nil, err
	}
	// Holds must come before the position is read: entries that are committed from now on are sent anyway.
	holds, err := replog.Holds(disk, f.hello.Position, f.hello.EntryEpoch)
	if err != nil {
		return nil, nil, err
	}
	r := f.r
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.primary != nil:
		return nil, &replog.Refusal{Reason: "this node is a replica and has no replicas of its own"}, nil
	case r.fenced:
		return nil, &replog.Refusal{Reason: r.problem}, nil
	case f.hello.Schema != schema && f.hello.Schema != replog.NoSchema():
		reason := fmt.Sprintf("schema differs: the primary has %s, the replica has %s", schema, f.hello.Schema)
		return nil, &replog.Refusal{Reason: reason, Schema: true}, nil
	}
	return &replog.Welcome{
		Node: r.cfg.Node, Epoch: r.knownEpoch, Position: r.position,
		Snapshot: !holds || f.hello.Schema != schema,
		Behind: f.hello.Position == 0 ||
			f.hello.EntryEpoch == r.epoch && f.hello.Position > 0 && f.hello.Position <= r.position,
	}, nil, nil
}

func (f *sender) snapshot(disk *sqlite.Conn) error {
	// The snapshot has at least the entries up to this position, so the log must keep the later ones.
	f.retainAfter(f.r.currentPosition())
	beat := func() error { return f.beat(time.Now(), 0) }
	return f.Snapshot(disk, f.r.db.Dir(), beat, func(path string) (err error) {
		f.hello.Position, err = positionOf(path)
		return err
	})
}

func (f *sender) beat(at time.Time, position int64) error {
	if err := f.Deadline(); err != nil {
		return err
	}
	return errors.Join(replog.WriteNumbers(f, replog.KindHeartbeat, at.UnixMicro(), position), f.Flush())
}

func (f *sender) stream() error {
	r := f.r
	r.mu.Lock()
	// If a replica reconnects before its old connection is closed, it counts once.
	r.followers[f.hello.Node] = f
	f.sent = f.hello.Position
	r.notify()
	r.mu.Unlock()
	err := f.Run(func(position int64) error {
		if err := r.cfg.CheckMember(f.hello.Node); err != nil {
			return err
		}
		r.mu.Lock()
		defer r.mu.Unlock()
		switch {
		case position > f.sent: // it would count as a copy of a commit that it does not have
			return fmt.Errorf("%w: %d, but only %d was sent", replog.ErrAcknowledgement, position, f.sent)
		case position > f.acked:
			f.acked = position
			r.updateConfirmed()
		}
		return nil
	}, f.send)
	r.mu.Lock()
	if r.followers[f.hello.Node] == f {
		delete(r.followers, f.hello.Node)
		r.notify()
	}
	r.mu.Unlock()
	return err
}

// send sends entries and heartbeats. It returns nil when the replica has disconnected or this node is fenced. If the
// node stops, it first sends everything and waits for the acknowledgement.
func (f *sender) send() error {
	last := f.hello.Position
	if err := f.beat(time.Now(), last); err != nil {
		return err
	}
	for {
		// The time must be taken before the log is read: a heartbeat states that up to its time there are no more entries.
		now := time.Now()
		entries, changed, complete := f.r.after(last)
		if !complete {
			var err error
			if entries, err = f.fromDisk(last); err != nil {
				return err
			}
		}
		if len(entries) > 0 {
			last = entries[len(entries)-1].Position
			f.r.mu.Lock()
			f.sent = last // before the first byte: the acknowledgement may come at once
			f.r.mu.Unlock()
			for i := range entries {
				if err := f.Entry(&entries[i]); err != nil {
					return err
				}
			}
			if err := f.Flush(); err != nil {
				return err
			}
			f.retainAfter(last)
			continue
		}
		if f.finished(last) {
			return nil
		}
		if f.HeartbeatDue {
			if err := f.beat(now, last); err != nil {
				return err
			}
			f.HeartbeatDue = false
		}
		if !f.Wait(changed) {
			return nil
		}
	}
}

// finished reports whether send must end. last is the position of the last sent entry.
func (f *sender) finished(last int64) bool {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return f.r.fenced || f.r.stopping || f.ClientsGone && f.acked >= last
}

// fromDisk reads entries that are no longer in the tail.
func (f *sender) fromDisk(after int64) (entries []replog.Entry, err error) {
	err = f.r.db.Read(func(disk *sqlite.Conn) (err error) {
		entries, err = replog.Entries(disk, after, 1<<20)
		return err
	})
	if err == nil && (len(entries) == 0 || entries[0].Position != after+1) {
		err = fmt.Errorf("the log no longer has entry %d", after+1)
	}
	return entries, err
}

// updateConfirmed raises confirmed to the highest position that SyncCopies replicas have acknowledged. It never lowers
// confirmed, because a replica that has disconnected still has its entries. The lock is held.
func (r *Node) updateConfirmed() {
	if k := r.cfg.SyncCopies; k > 0 && len(r.followers) >= k {
		var acked []int64
		for _, f := range r.followers {
			acked = append(acked, f.acked)
		}
		slices.Sort(acked)
		r.confirmed = max(r.confirmed, acked[len(acked)-k])
	}
	r.notify()
}

// after returns entries of the tail after a position, and a channel that is closed when there are more. complete is
// false if the tail does not reach back to the position; then the entries must be read from disk.
func (r *Node) after(position int64) (entries []replog.Entry, changed <-chan struct{}, complete bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if position >= r.position {
		return nil, r.changed, true
	}
	if len(r.tail) == 0 || r.tail[0].Position > position+1 {
		return nil, r.changed, false
	}
	// The copy is needed because Committed overwrites elements of the tail's array.
	from := r.tail[position+1-r.tail[0].Position:]
	return append([]replog.Entry(nil), from[:min(len(from), 256)]...), r.changed, true
}
