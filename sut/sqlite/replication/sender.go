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

// sender is a replica as its primary sees it: a connection on which the log goes out and acknowledgements come back.
type sender struct {
	*replog.Feed
	r     *Node
	hello replog.Hello
	acked int64 // guarded by Node.mu
}

// Serve gives a replica what it asks for until it goes, or the node does. It owns neither the connection nor in,
// which is what is read from it.
func (r *Node) Serve(link net.Conn, in io.Reader) {
	f := &sender{Feed: replog.NewFeed(link, in, heartbeatInterval, r.left), r: r}
	defer f.needs(math.MaxInt64)
	err := f.greet()
	if err == nil {
		err = f.stream()
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		r.logger.Warn("replica gone", "replica", f.hello.Node, "cause", err)
	}
}

// greet answers the Hello, with a snapshot where it must. Then hello.Position is where the replica is.
func (f *sender) greet() error {
	if err := f.Hello(replog.KindHello, &f.hello); err != nil {
		return err
	}
	if to := f.hello.To; to != f.r.cfg.Node {
		// An address that somebody else had before: neither its changes nor its epochs are this node's.
		refusal := replog.Refusal{Reason: fmt.Sprintf("this is node %s, not %s", f.r.cfg.Node, to)}
		return errors.Join(f.Refuse(refusal), io.EOF)
	}
	f.r.fence(f.hello.Epoch, f.hello.Node)
	return f.r.db.Read(f.welcome)
}

func (f *sender) welcome(disk *sqlite.Conn) error {
	f.needs(f.hello.Position)
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

// needs keeps the log after a position for this replica; with the highest number it needs nothing.
func (f *sender) needs(position int64) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.r.needs[f] = position; position == math.MaxInt64 {
		delete(f.r.needs, f)
	}
}

// answer decides what the replica gets. Its last entry must be in this log under the same epoch: then all before it
// are the same, too, for an epoch has one primary, and every log grew from one that held that entry's predecessor.
func (f *sender) answer(disk *sqlite.Conn) (*replog.Welcome, *replog.Refusal, error) {
	schema, err := replog.Schema(disk)
	if err != nil {
		return nil, nil, err
	}
	// Before the position is read: what is committed from here on is sent.
	holds, err := replog.Holds(disk, f.hello.Position, f.hello.EntryEpoch)
	if err != nil {
		return nil, nil, err
	}
	r := f.r
	r.mu.Lock()
	defer r.mu.Unlock()
	switch {
	case r.primary != nil:
		return nil, &replog.Refusal{Reason: "this node is a replica itself"}, nil
	case r.fenced:
		return nil, &replog.Refusal{Reason: r.problem}, nil
	case f.hello.Schema != schema && f.hello.Schema != replog.NoSchema():
		reason := fmt.Sprintf("schema differs: the primary has %s, the replica %s", schema, f.hello.Schema)
		return nil, &replog.Refusal{Reason: reason, Schema: true}, nil
	}
	return &replog.Welcome{
		Node: r.cfg.Node, Epoch: r.known, Position: r.position,
		Snapshot: !holds || f.hello.Schema != schema,
		Behind: f.hello.Position == 0 ||
			f.hello.EntryEpoch == r.epoch && f.hello.Position > 0 && f.hello.Position <= r.position,
	}, nil, nil
}

func (f *sender) snapshot(disk *sqlite.Conn) error {
	// The snapshot has at least this, and the log goes on from there.
	f.needs(f.r.at())
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
	// A replica that comes back before its old connection was found dead counts once.
	r.followers[f.hello.Node] = f
	r.announce()
	r.mu.Unlock()
	err := f.Run(func(position int64) {
		r.mu.Lock()
		defer r.mu.Unlock()
		if position > f.acked {
			f.acked = position
			r.confirm()
		}
	}, f.send)
	r.mu.Lock()
	if r.followers[f.hello.Node] == f {
		delete(r.followers, f.hello.Node)
		r.announce()
	}
	r.mu.Unlock()
	return err
}

// send returns nil when the replica or the role of this node has gone, or the node stops and the replica has
// everything.
func (f *sender) send() error {
	last := f.hello.Position
	if err := f.beat(time.Now(), last); err != nil {
		return err
	}
	for {
		// Taken before the log is looked at: a heartbeat says that up to its time there was nothing more.
		now := time.Now()
		entries, changed, complete := f.r.after(last)
		if !complete {
			var err error
			if entries, err = f.fromDisk(last); err != nil {
				return err
			}
		}
		if len(entries) > 0 {
			for i := range entries {
				if err := f.Entry(&entries[i]); err != nil {
					return err
				}
			}
			if err := f.Flush(); err != nil {
				return err
			}
			last = entries[len(entries)-1].Position
			f.needs(last)
			continue
		}
		if f.over(last) {
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

func (f *sender) over(last int64) bool {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return f.r.fenced || f.r.ended || f.ClientsGone && f.acked >= last
}

// fromDisk reads what memory has no more.
func (f *sender) fromDisk(after int64) (entries []replog.Entry, err error) {
	err = f.r.db.Read(func(disk *sqlite.Conn) (err error) {
		entries, err = replog.Entries(disk, after, 1<<20)
		return err
	})
	if err == nil && (len(entries) == 0 || entries[0].Position != after+1) {
		err = fmt.Errorf("the log has no entry %d any more", after+1)
	}
	return entries, err
}

// confirm notes what replicas have acknowledged. It is kept apart from them, for one that goes right afterwards has
// the transaction all the same. The lock is held.
func (r *Node) confirm() {
	if k := r.cfg.SyncCopies; k > 0 && len(r.followers) >= k {
		var acked []int64
		for _, f := range r.followers {
			acked = append(acked, f.acked)
		}
		slices.Sort(acked)
		r.confirmed = max(r.confirmed, acked[len(acked)-k])
	}
	r.announce()
}

// after returns entries of the tail that follow a position, and what is closed when there are more. Complete is false
// when the log on disk must be asked.
func (r *Node) after(position int64) (entries []replog.Entry, changed <-chan struct{}, complete bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if position >= r.position {
		return nil, r.changed, true
	}
	if len(r.tail) == 0 || r.tail[0].Position > position+1 {
		return nil, r.changed, false
	}
	// A copy, for the tail's array is written to.
	from := r.tail[position+1-r.tail[0].Position:]
	return append([]replog.Entry(nil), from[:min(len(from), 256)]...), r.changed, true
}
