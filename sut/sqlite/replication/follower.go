package replication

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// follower is a primary as its replica sees it. One goroutine connects and receives, another one applies: what was
// received survives the connection, and waits for as long as the artificial lag wants.
type follower struct {
	r       *Node
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
	link    *replog.Link // nil = not connected
	ack     error        // of the last acknowledgement that could not be sent
	stuck   error        // why nothing more can be applied
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

func (r *Node) follow(primary sut.Peer) *follower {
	f := &follower{r: r, primary: primary, changed: make(chan struct{})}
	f.received, f.applied = make(chan struct{}), make(chan struct{})
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

// finish receives no more, applies what is there without lag and ends. Its error says why it could not.
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

// forget throws away what was received; the lock is held.
func (f *follower) forget() {
	f.queue, f.bytes = nil, 0
	f.drops++
	f.wake()
}

func (f *follower) giveUp(err error) {
	f.mu.Lock()
	f.stuck = err
	f.mu.Unlock()
	f.r.disconnected(err)
	f.r.logger.Error("replication ends", "primary", f.primary.Node, "cause", err)
}

func (f *follower) receiveAll() {
	defer close(f.received)
	const shortest, longest = 50 * time.Millisecond, time.Second
	pause := shortest
	for {
		welcomed, err := f.receive()
		if f.receiving.Err() != nil {
			return
		}
		if errors.Is(err, errForGood) {
			f.giveUp(err)
			return
		}
		f.r.disconnected(err)
		if welcomed {
			pause = shortest
		}
		if !replog.Pause(f.receiving, pause) {
			return
		}
		pause = min(2*pause, longest)
	}
}

func (f *follower) receive() (welcomed bool, err error) {
	hello, err := f.hello()
	if err != nil {
		return false, err
	}
	link, err := replog.Dial(f.receiving, f.primary.Address, replog.KindHello, hello)
	if err != nil {
		return false, err
	}
	defer link.Close()
	welcome, err := f.welcome(link)
	if err != nil {
		return false, err
	}
	last := hello.Position
	if welcome.Snapshot {
		if last, err = f.rebuild(link, welcome); err != nil {
			return true, err
		}
	}
	f.setLink(link)
	defer f.setLink(nil)
	f.r.connects(welcome.Position)
	return true, f.take(link, last)
}

// deposeTime is for how long a promoted replica looks for the one whose place it took.
const deposeTime = 10 * time.Minute

// depose tells an old primary that there is a new one, should it only have been cut off, or hang and come to life
// again: it fences itself then. It returns a function that ends this.
func (r *Node) depose(old sut.Peer, epoch int64) (end func()) {
	ctx, cancel := context.WithTimeout(context.Background(), deposeTime)
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer cancel()
		for r.tell(ctx, old, epoch) != nil && replog.Pause(ctx, time.Second) {
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

func (r *Node) tell(ctx context.Context, other sut.Peer, epoch int64) error {
	hello := &replog.Hello{Node: r.cfg.Node, To: other.Node, Epoch: epoch, Position: -1}
	link, err := replog.Dial(ctx, other.Address, replog.KindHello, hello)
	if err != nil {
		return err
	}
	defer link.Close()
	// Without a deadline: one that hangs reads it when it hangs no more.
	_, _, err = replog.Read(link.Conn, replog.MaxBody)
	return err
}

func (f *follower) setLink(link *replog.Link) {
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
	err := f.r.db.Read(func(disk *sqlite.Conn) (err error) {
		h.Schema, err = replog.Schema(disk)
		return err
	})
	if err != nil {
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

func (f *follower) welcome(link *replog.Link) (*replog.Welcome, error) {
	var w replog.Welcome
	var refusal replog.Refusal
	welcomed, err := link.Answer(&w, &refusal)
	if err != nil {
		return nil, err
	}
	if !welcomed {
		err := fmt.Errorf("refused by %s: %s", f.primary.Node, refusal.Reason)
		if refusal.Schema {
			err = fmt.Errorf("%w: %w", errForGood, err)
		}
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
func (f *follower) take(link *replog.Link, last int64) error {
	for {
		kind, body, err := link.Next()
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
		case replog.KindHeartbeat:
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

// acknowledge tells the primary what is applied here. That it cannot be told is found out by who receives.
func (f *follower) acknowledge(position int64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.link == nil || f.ack != nil {
		return
	}
	if f.ack = f.link.Acknowledge(position); f.ack != nil {
		_ = f.link.Close()
	}
}

// rebuild puts a received snapshot in the place of the database, and returns its position.
func (f *follower) rebuild(link *replog.Link, w *replog.Welcome) (int64, error) {
	r := f.r
	if !w.Behind {
		r.diverges("this copy has changes that its primary has not")
	}
	if err := link.Snapshot(r.db.Incoming(), replog.KindHeartbeat); err != nil {
		return 0, err
	}
	unlock, err := r.db.LockWriter(f.receiving)
	if err != nil {
		return 0, err
	}
	defer unlock()
	// From here on it is not what it was, whatever happens.
	r.diverges("the copy is being replaced")
	f.mu.Lock()
	f.forget()
	f.mu.Unlock()
	if _, err := positionOf(r.db.Incoming()); err != nil {
		return 0, fmt.Errorf("snapshot: %w", err)
	}
	kept := int64(-1) // where the primary has all, nothing needs to be kept
	if !w.Behind {
		_, kept = r.log.Last()
	}
	if err := errors.Join(r.db.Replace(kept), r.open(w.Epoch)); err != nil {
		return 0, fmt.Errorf("snapshot: %w", err)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.diverged = false
	r.rebuilds++
	return r.position, nil
}

func positionOf(path string) (position int64, err error) {
	c, err := sqlite.OpenConn(path, sqlite.OpenReadOnly)
	if err != nil {
		return 0, err
	}
	position, err = replog.Position(c)
	return position, errors.Join(err, c.Close())
}
