package sqlite

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"slices"
	"time"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// sender is a replica as its primary sees it: a connection on which the log
// goes out and acknowledgements come back.
type sender struct {
	r     *replication
	link  net.Conn
	in    io.Reader
	out   *bufio.Writer
	hello replog.Hello
	gone  chan struct{} // closed when the replica is heard no more
	acked int64         // guarded by replication.mu
}

// serve gives a replica what it asks for until it goes, or the node does. It
// runs in the goroutine of the connection; rest is what the replica has sent
// besides its start-up packet.
func (r *replication) serve(link net.Conn, rest []byte) {
	in := bufio.NewReader(io.MultiReader(bytes.NewReader(bytes.Clone(rest)), link))
	if r.several != nil {
		r.serveOneOf(link, in)
		return
	}
	f := &sender{
		r: r, link: link, in: in, out: bufio.NewWriterSize(link, 64<<10), gone: make(chan struct{}),
	}
	defer f.needs(math.MaxInt64)
	err := f.greet()
	if err == nil {
		err = f.stream()
	}
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
		r.server.cfg.Log.Warn("replica gone", "replica", f.hello.Node, "cause", err)
	}
}

// greet reads the Hello and answers it, with a snapshot where the replica
// needs one. Afterwards hello.Position is where the replica is.
func (f *sender) greet() error {
	if err := f.link.SetDeadline(time.Now().Add(f.r.server.cfg.HandshakeTimeout)); err != nil {
		return err
	}
	kind, body, err := replog.Read(f.in, followerHello)
	if err != nil {
		return err
	}
	if kind != replog.KindHello {
		return fmt.Errorf("message %q where a Hello should be", kind)
	}
	if err := json.Unmarshal(body, &f.hello); err != nil {
		return err
	}
	if to := f.hello.To; to != f.r.cfg.Node {
		// An address that somebody else had before: neither its changes nor its
		// epochs are this node's.
		refusal := replog.Refusal{Reason: fmt.Sprintf("this is node %s, not %s", f.r.cfg.Node, to)}
		return errors.Join(replog.WriteJSON(f.out, replog.KindRefusal, refusal), f.out.Flush(), io.EOF)
	}
	if f.hello.Epoch > f.known() && !f.r.replica() {
		f.r.fence(f.hello.Epoch, f.hello.Node)
	}
	disk, err := openConn(f.r.server.cfg, 0, false)
	if err != nil {
		return err
	}
	defer disk.close()
	f.needs(f.hello.Position)
	welcome, refusal, err := f.answer(disk)
	switch {
	case err != nil:
		return err
	case refusal != nil:
		return errors.Join(replog.WriteJSON(f.out, replog.KindRefusal, refusal), f.out.Flush(), io.EOF)
	}
	if err := replog.WriteJSON(f.out, replog.KindWelcome, welcome); err != nil || !welcome.Snapshot {
		return err
	}
	f.r.server.cfg.Log.Info("replica gets a snapshot", "replica", f.hello.Node, "position", f.hello.Position, "behind", welcome.Behind)
	return f.snapshot(disk)
}

// needs keeps the log after a position for this replica; with the highest
// number it needs nothing.
func (f *sender) needs(position int64) {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	if f.r.needs[f] = position; position == math.MaxInt64 {
		delete(f.r.needs, f)
	}
}

func (f *sender) known() int64 {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return f.r.known
}

// answer decides what the replica gets. Its last entry must be in this log
// under the same epoch: then all before it are the same, too, for an epoch has
// one primary, and every log grew from one that held that entry's predecessor.
func (f *sender) answer(disk *conn) (*replog.Welcome, *replog.Refusal, error) {
	schema, err := replog.Schema(disk.Conn)
	if err != nil {
		return nil, nil, err
	}
	// Before the position is read: what is committed from here on is sent.
	holds, err := replog.Holds(disk.Conn, f.hello.Position, f.hello.EntryEpoch)
	if err != nil {
		return nil, nil, err
	}
	r := f.r
	r.mu.Lock()
	defer r.mu.Unlock()
	refusal := &replog.Refusal{Epoch: r.known}
	switch {
	case r.primary != nil:
		refusal.Reason = "this node is a replica itself"
		return nil, refusal, nil
	case r.fenced:
		refusal.Reason = r.problem
		return nil, refusal, nil
	case f.hello.Schema != schema && f.hello.Schema != replog.NoSchema():
		refusal.Reason = fmt.Sprintf("schema differs: the primary has %s, the replica %s", schema, f.hello.Schema)
		refusal.Schema = true
		return nil, refusal, nil
	}
	return &replog.Welcome{
		Node: r.cfg.Node, Epoch: r.known, Position: r.position,
		Snapshot: !holds || f.hello.Schema != schema,
		Behind:   f.hello.Position == 0 || f.hello.EntryEpoch == r.epoch && f.hello.Position > 0 && f.hello.Position <= r.position,
	}, nil, nil
}

// snapshot sends the whole database as it is now.
func (f *sender) snapshot(disk *conn) error {
	// The snapshot has at least this, and the log goes on from there.
	f.needs(f.r.at())
	return replog.Snapshot{
		Conn: disk.Conn, Dir: f.r.server.cfg.Dir, Every: beatInterval, Deadline: f.deadline,
		Beat: func() error { return f.beat(time.Now(), 0) },
		Made: func(path string) (err error) {
			f.hello.Position, err = positionOf(path)
			return err
		},
	}.Send(f.out)
}

func (f *sender) deadline() error { return f.link.SetWriteDeadline(time.Now().Add(patience)) }

func (f *sender) beat(at time.Time, position int64) error {
	if err := f.deadline(); err != nil {
		return err
	}
	return errors.Join(replog.WriteNumbers(f.out, replog.KindBeat, at.UnixMicro(), position), f.out.Flush())
}

// stream sends what is new, as soon as it is.
func (f *sender) stream() error {
	r := f.r
	r.mu.Lock()
	// A replica that comes back before its old connection was found dead
	// counts once.
	r.followers[f.hello.Node] = f
	r.announce()
	r.mu.Unlock()
	heard := make(chan error, 1)
	go func() {
		heard <- f.listen()
		close(f.gone)
	}()
	err := f.send()
	// Ends listen.
	_ = f.out.Flush()
	_ = f.link.Close()
	<-f.gone
	r.mu.Lock()
	if r.followers[f.hello.Node] == f {
		delete(r.followers, f.hello.Node)
		r.announce()
	}
	r.mu.Unlock()
	if err == nil {
		err = <-heard
	}
	return err
}

// listen takes acknowledgements until the connection ends.
func (f *sender) listen() error {
	for {
		if err := f.link.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		kind, body, err := replog.Read(f.in, followerHello)
		if err != nil {
			return err
		}
		if kind != replog.KindAck {
			return fmt.Errorf("message %q where an acknowledgement should be", kind)
		}
		position, err := replog.Numbers(body, 1)
		if err != nil {
			return err
		}
		f.r.mu.Lock()
		if position[0] > f.acked {
			f.acked = position[0]
			f.r.confirm()
		}
		f.r.mu.Unlock()
	}
}

// send returns nil when the replica or the role of this node has gone, or the
// node stops and the replica has everything.
func (f *sender) send() error {
	beat := time.NewTicker(beatInterval)
	defer beat.Stop()
	last := f.hello.Position
	if err := f.beat(time.Now(), last); err != nil {
		return err
	}
	var late <-chan time.Time
	due := false // a heartbeat is
	left := f.r.server.wire.Left()
	for {
		// Taken before the log is looked at: a heartbeat says that up to its
		// time there was nothing more.
		now := time.Now()
		entries, changed, complete := f.r.after(last)
		if !complete {
			var err error
			if entries, err = f.fromDisk(last); err != nil {
				return err
			}
		}
		if len(entries) > 0 {
			if err := f.entries(entries); err != nil {
				return err
			}
			last = entries[len(entries)-1].Position
			f.needs(last)
			continue
		}
		if f.over(last, left == nil) {
			return nil
		}
		if due {
			if err := f.beat(now, last); err != nil {
				return err
			}
			due = false
		}
		select {
		case <-changed:
		case <-f.gone:
			return nil
		case <-left:
			left, late = nil, time.After(time.Second)
		case <-late:
			return nil
		case <-beat.C:
			due = true
		}
	}
}

// over reports whether nothing more will be sent.
func (f *sender) over(last int64, left bool) bool {
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	return f.r.fenced || f.r.ended || left && f.acked >= last
}

func (f *sender) entries(entries []replog.Entry) error {
	for i := range entries {
		if err := f.deadline(); err != nil {
			return err
		}
		if err := replog.WriteEntry(f.out, &entries[i]); err != nil {
			return err
		}
	}
	return f.out.Flush()
}

// fromDisk reads what memory has no more.
func (f *sender) fromDisk(after int64) ([]replog.Entry, error) {
	disk, err := openConn(f.r.server.cfg, 0, false)
	if err != nil {
		return nil, err
	}
	defer disk.close()
	entries, err := replog.Entries(disk.Conn, after, 1<<20)
	if err != nil {
		return nil, err
	}
	if len(entries) == 0 || entries[0].Position != after+1 {
		return nil, fmt.Errorf("the log has no entry %d any more", after+1)
	}
	return entries, nil
}

// confirm notes what replicas have acknowledged. It is kept apart from them,
// for one that goes right afterwards has the transaction all the same. The lock
// is held.
func (r *replication) confirm() {
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

// after returns entries of the tail that follow a position, and what is closed
// when there are more. Complete is false when the log on disk must be asked.
func (r *replication) after(position int64) (entries []replog.Entry, changed <-chan struct{}, complete bool) {
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
