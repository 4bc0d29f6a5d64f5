package sqlite

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"sync"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// follower is a primary as its replica sees it. One goroutine connects and
// receives, another one applies: what was received survives the connection,
// and waits for as long as the artificial lag wants.
type follower struct {
	r       *replication
	primary sut.Peer

	receiving context.Context // ended: receives no more
	silence   context.CancelFunc
	applying  context.Context // ended: applies no more
	halt      context.CancelFunc
	received  chan struct{} // closed when nothing more will come
	applied   chan struct{} // closed when nothing more will be applied

	mu      sync.Mutex
	queue   []arrival // received, not yet applied
	bytes   int       // of the queue
	drops   int       // times that the queue was thrown away
	hurry   bool      // apply without lag, then end
	changed chan struct{}
	link    net.Conn // nil = not connected
	ack     error    // of the last acknowledgement that could not be sent
	stuck   error    // why nothing more can be applied
}

// arrival is an entry, or a heartbeat, which has none.
type arrival struct {
	entry    *replog.Entry
	position int64
	atUS     int64
}

// Bounds of what is taken at a time.
const (
	queueBytes   = 64 << 20 // received and not yet applied
	batchEntries = 64       // applied with one wait for the disk
	batchBytes   = 1 << 20
)

// errForGood is an error after which it will not do to try again.
var errForGood = errors.New("this replica stops")

// follow begins to follow a primary.
func (r *replication) follow(primary sut.Peer) *follower {
	f := &follower{r: r, primary: primary, received: make(chan struct{}), applied: make(chan struct{}), changed: make(chan struct{})}
	f.receiving, f.silence = context.WithCancel(context.Background())
	f.applying, f.halt = context.WithCancel(context.Background())
	go f.receiveAll()
	go f.applyAll()
	return f
}

// abandon ends it; what is not applied yet is forgotten.
func (f *follower) abandon() {
	f.silence()
	f.halt()
	<-f.received
	<-f.applied
}

// finish receives no more, applies what is there without lag and ends. When
// that cannot be done in time, or at all, it says why.
func (f *follower) finish(ctx context.Context) error {
	f.silence()
	<-f.received
	f.mu.Lock()
	f.hurry = true
	f.wake()
	f.mu.Unlock()
	select {
	case <-f.applied:
	case <-ctx.Done():
		f.abandon()
		return ctx.Err()
	}
	f.halt()
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.stuck
}

// wake wakes both goroutines; the lock is held.
func (f *follower) wake() {
	close(f.changed)
	f.changed = make(chan struct{})
}

// receiveAll connects until it is told to end.
func (f *follower) receiveAll() {
	defer close(f.received)
	const shortest, longest = 50 * time.Millisecond, time.Second
	pause := shortest
	for {
		welcomed, err := f.receive()
		if f.receiving.Err() != nil {
			return
		}
		f.r.disconnected(err)
		if errors.Is(err, errForGood) {
			f.r.server.cfg.Log.Error("replication ends", "primary", f.primary.Node, "cause", err)
			f.mu.Lock()
			f.stuck = err
			f.mu.Unlock()
			return
		}
		if welcomed {
			pause = shortest
		}
		select {
		case <-f.receiving.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, longest)
	}
}

// receive receives over one connection until it breaks.
func (f *follower) receive() (welcomed bool, err error) {
	dialer := net.Dialer{Timeout: time.Second}
	link, err := dialer.DialContext(f.receiving, "tcp", f.primary.Address)
	if err != nil {
		return false, err
	}
	defer link.Close()
	defer context.AfterFunc(f.receiving, func() { _ = link.Close() })()
	hello, err := f.hello()
	if err != nil {
		return false, err
	}
	if err := introduce(link, hello); err != nil {
		return false, err
	}
	in := bufio.NewReaderSize(link, 64<<10)
	welcome, err := f.welcome(link, in)
	if err != nil {
		return false, err
	}
	last := hello.Position
	if welcome.Snapshot {
		if last, err = f.rebuild(link, in, welcome); err != nil {
			return true, err
		}
	}
	f.setLink(link)
	defer f.setLink(nil)
	f.r.connects(welcome.Position)
	return true, f.take(link, in, last)
}

// introduce begins a connection.
func introduce(link net.Conn, hello *replog.Hello) error {
	out := bufio.NewWriter(link)
	_, err := out.Write(replog.Start())
	return errors.Join(err, replog.WriteJSON(out, replog.KindHello, hello), out.Flush())
}

// deposeTime is for how long a promoted replica looks for the one whose place
// it took.
const deposeTime = 10 * time.Minute

// depose tells an old primary that there is a new one, should it only have
// been cut off, or hang and come to life again: it fences itself then. It
// returns a function that ends this.
func (r *replication) depose(old sut.Peer, epoch int64) (end func()) {
	ctx, cancel := context.WithTimeout(context.Background(), deposeTime)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		for {
			err := r.tell(ctx, old, epoch)
			if err == nil {
				return
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(time.Second):
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// tell returns nil when the other node has heard of the epoch.
func (r *replication) tell(ctx context.Context, other sut.Peer, epoch int64) error {
	dialer := net.Dialer{Timeout: time.Second}
	link, err := dialer.DialContext(ctx, "tcp", other.Address)
	if err != nil {
		return err
	}
	defer link.Close()
	defer context.AfterFunc(ctx, func() { _ = link.Close() })()
	if err := introduce(link, &replog.Hello{Node: r.cfg.Node, To: other.Node, Epoch: epoch, Position: -1}); err != nil {
		return err
	}
	// Without a deadline: one that hangs reads it when it hangs no more.
	_, _, err = replog.Read(link, replog.MaxBody)
	return err
}

func (f *follower) setLink(link net.Conn) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.link, f.ack = link, nil
}

// hello says where this copy is: with what was received, applied or not.
func (f *follower) hello() (*replog.Hello, error) {
	f.r.mu.Lock()
	h := &replog.Hello{Node: f.r.cfg.Node, To: f.primary.Node, Epoch: f.r.known, Position: -1, Schema: replog.NoSchema()}
	diverged := f.r.diverged
	f.r.mu.Unlock()
	if diverged {
		return h, nil // what it has is no matter, and may not even be there
	}
	disk, err := openConn(f.r.server.cfg, 0, false)
	if err != nil {
		return nil, err
	}
	h.Schema, err = replog.Schema(disk.Conn)
	if err := errors.Join(err, disk.close()); err != nil {
		return nil, err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	f.r.mu.Lock()
	defer f.r.mu.Unlock()
	h.Position, h.EntryEpoch = f.r.position, f.r.epoch
	for _, a := range f.queue {
		if a.entry != nil && a.position > h.Position {
			h.Position, h.EntryEpoch = a.position, a.entry.Epoch
		}
	}
	return h, nil
}

// next reads a message of the primary, which is never silent for long.
func next(link net.Conn, in io.Reader) (replog.Kind, []byte, error) {
	if err := link.SetReadDeadline(time.Now().Add(silence)); err != nil {
		return 0, nil, err
	}
	// The deadline is for silence, not for the size of an entry.
	return replog.Read(extending{Reader: in, link: link}, replog.MaxBody)
}

// extending is a reader that gives each of its reads the whole time.
type extending struct {
	io.Reader
	link net.Conn
}

// Read reads, and sets the deadline for the next read.
func (e extending) Read(p []byte) (int, error) {
	n, err := e.Reader.Read(p)
	if err == nil {
		err = e.link.SetReadDeadline(time.Now().Add(silence))
	}
	return n, err
}

// welcome reads the answer to the Hello.
func (f *follower) welcome(link net.Conn, in io.Reader) (*replog.Welcome, error) {
	kind, body, err := next(link, in)
	if err != nil {
		return nil, err
	}
	switch kind {
	case replog.KindRefusal:
		var refusal replog.Refusal
		if err := json.Unmarshal(body, &refusal); err != nil {
			return nil, err
		}
		err := fmt.Errorf("refused by %s: %s", f.primary.Node, refusal.Reason)
		if refusal.Schema {
			err = fmt.Errorf("%w: %w", errForGood, err)
		}
		return nil, err
	case replog.KindWelcome:
	default:
		return nil, fmt.Errorf("message %q where a Welcome should be", kind)
	}
	var w replog.Welcome
	if err := json.Unmarshal(body, &w); err != nil {
		return nil, err
	}
	f.r.mu.Lock()
	known := f.r.known
	f.r.mu.Unlock()
	if w.Epoch < known {
		return nil, fmt.Errorf("%s is a primary of epoch %d, and %d is known", w.Node, w.Epoch, known)
	}
	return &w, f.r.know(w.Epoch)
}

// take receives entries and heartbeats that follow a position.
func (f *follower) take(link net.Conn, in io.Reader, last int64) error {
	for {
		kind, body, err := next(link, in)
		if err != nil {
			return err
		}
		var a arrival
		switch kind {
		case replog.KindEntry:
			if a.entry, err = replog.ParseEntry(body); err != nil {
				return err
			}
			a.position, a.atUS = a.entry.Position, a.entry.AtUS
			if last++; a.position != last {
				return fmt.Errorf("entry %d where %d should be", a.position, last)
			}
		case replog.KindBeat:
			n, err := replog.Numbers(body, 2)
			if err != nil {
				return err
			}
			a.atUS, a.position = n[0], n[1]
			// Also while all is held up by the lag the primary hears of us.
			f.acknowledge(f.r.at())
		default:
			return fmt.Errorf("message %q in the stream", kind)
		}
		if err := f.push(a); err != nil {
			return err
		}
	}
}

// acknowledge tells the primary what is applied here. That it cannot be told
// is found out by who receives.
func (f *follower) acknowledge(position int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.link == nil || f.ack != nil {
		return
	}
	if f.ack = f.link.SetWriteDeadline(time.Now().Add(silence)); f.ack == nil {
		f.ack = replog.WriteNumbers(f.link, replog.KindAck, position)
	}
	if f.ack != nil {
		_ = f.link.Close()
	}
}

// rebuild receives a snapshot and puts it in the place of the database. It
// returns the position that the snapshot has.
func (f *follower) rebuild(link net.Conn, in io.Reader, w *replog.Welcome) (int64, error) {
	r := f.r
	if !w.Behind {
		r.diverges("this copy has changes that its primary has not")
	}
	if err := f.download(link, in); err != nil {
		return 0, err
	}
	writer := r.server.writer
	if err := writer.await(f.receiving.Done, true); err != nil {
		return 0, err
	}
	defer writer.leave()
	// From here on it is not what it was, whatever happens.
	r.diverges("the copy is being replaced")
	f.mu.Lock()
	f.queue, f.bytes = nil, 0
	f.drops++
	f.wake()
	f.mu.Unlock()
	if err := r.replace(!w.Behind); err != nil {
		return 0, err
	}
	if err := r.log.Know(w.Epoch); err != nil {
		return 0, err
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.diverged = false
	r.rebuilds++
	return r.position, nil
}

// download receives a snapshot into a file of its own.
func (f *follower) download(link net.Conn, in io.Reader) error {
	return replog.Receive(filepath.Join(f.r.server.cfg.Dir, incomingName), func() ([]byte, error) {
		for {
			kind, body, err := next(link, in)
			switch {
			case err != nil:
				return nil, err
			case kind == replog.KindBeat:
				continue
			case kind != replog.KindSnapshot:
				return nil, fmt.Errorf("message %q in a snapshot", kind)
			}
			return body, nil
		}
	})
}
