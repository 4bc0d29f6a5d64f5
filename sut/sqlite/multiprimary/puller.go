package multiprimary

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// puller receives changes from another node and applies them. After a disconnect it asks again for changes that it has
// not applied.
type puller struct {
	n    *Node
	peer sut.Peer
	all  bool // peer sends the changes of all origins, because this node receives from no other, as in a ring
	ctx  context.Context
	stop context.CancelFunc
	done chan struct{}

	// Guarded by Node.mu.
	connected bool
	problem   string
}

// startPuller starts to receive changes. The lock is held.
func (n *Node) startPuller(peer sut.Peer, all bool) *puller {
	p := &puller{n: n, peer: peer, all: all, done: make(chan struct{}), problem: "not connected yet"}
	p.ctx, p.stop = context.WithCancel(context.Background())
	go p.run()
	return p
}

// run connects and receives until stop.
func (p *puller) run() {
	defer close(p.done)
	const shortest, longest, unlikely = 50 * time.Millisecond, time.Second, 30 * time.Second
	pause := shortest
	for {
		err := p.receive()
		if p.ctx.Err() != nil {
			return
		}
		p.n.mu.Lock()
		if p.connected {
			pause = shortest
		}
		if errors.Is(err, errSnapshotLoses) {
			pause = unlikely // a retry will hardly succeed
		}
		first := p.connected || p.problem != err.Error()
		p.connected, p.problem = false, err.Error()
		p.n.mu.Unlock()
		if first {
			p.n.logger.Warn("receiving changes from another primary: will retry", "origin", p.peer.Node, "cause", err)
		}
		if !replog.Pause(p.ctx, pause) {
			return
		}
		pause = min(2*pause, max(pause, longest))
	}
}

// receive connects once and receives until an error. If the other node asks for it, it fetches a snapshot first.
func (p *puller) receive() error {
	link, replaced, origin, err := p.connect(false)
	if errors.Is(err, errNeedsSnapshot) {
		if failed := p.rebuild(replaced); failed != nil {
			err = fmt.Errorf("%w; %w", err, failed)
		}
	}
	if err != nil {
		return err
	}
	defer link.Close()
	p.n.mu.Lock()
	p.connected, p.problem = true, ""
	p.n.mu.Unlock()
	var batch []replog.Entry
	for {
		kind, body, err := link.Next()
		if err != nil {
			// Apply the complete entries of an incomplete batch: the origin may be lost for ever, and they would be lost with
			// it.
			return errors.Join(err, p.apply(batch))
		}
		switch kind {
		case replog.KindEntry:
			e, err := replog.ParseEntry(body)
			if err != nil {
				return err
			}
			batch = append(batch, *e)
		case kindWatermarks:
			var watermarks map[string]int64
			if err := json.Unmarshal(body, &watermarks); err != nil {
				return err
			}
			if err := p.apply(batch); err != nil {
				return err
			}
			batch = nil
			p.n.observeWatermarks(watermarks)
			p.n.mu.Lock()
			seq := p.n.durable.heads[origin].seq
			p.n.mu.Unlock()
			if err := link.Acknowledge(seq); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: got %q, want an entry or watermarks", replog.ErrMessage, kind)
		}
	}
}

// connect opens a connection and sends the hello. It returns the origin name of the other node. replaced is the value
// of Node.replaced before the hello was made.
func (p *puller) connect(snapshot bool) (link *replog.Link, replaced int64, origin string, err error) {
	p.n.mu.Lock()
	replaced = p.n.replaced
	p.n.mu.Unlock()
	h, err := p.hello()
	if err != nil {
		return nil, replaced, "", err
	}
	h.Snapshot = snapshot
	if link, err = replog.Dial(p.ctx, p.peer.Address, p.n.cfg.Secret, kindGreeting, h); err != nil {
		return nil, replaced, "", err
	}
	if origin, err = p.welcome(link); err != nil {
		_ = link.Close()
	}
	return link, replaced, origin, err
}

func (p *puller) hello() (*hello, error) {
	p.n.files.RLock()
	defer p.n.files.RUnlock()
	h := &hello{Node: p.n.cfg.Node, Origin: p.n.self, To: p.peer.Node, All: p.all, Have: map[string]int64{}}
	err := p.n.db.Read(func(disk *sqlite.Conn) (err error) {
		h.Schema, err = replog.Schema(disk)
		return err
	})
	if err != nil {
		return nil, err
	}
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	for origin, m := range p.n.durable.heads {
		h.Have[origin] = m.seq
	}
	return h, nil
}

// welcome reads the answer to the hello and returns the origin name of the other node.
func (p *puller) welcome(link *replog.Link) (origin string, err error) {
	var w replog.Welcome
	var r replog.Refusal
	welcomed, err := link.Answer(&w, &r)
	switch {
	case err != nil:
		return "", err
	case !welcomed && r.Behind:
		return "", fmt.Errorf("%w: %s", errNeedsSnapshot, r.Reason)
	case !welcomed:
		return "", fmt.Errorf("refused: %s", r.Reason)
	case nodeOf(w.Node) != p.peer.Node:
		return "", fmt.Errorf("the other node has origin %q, want an origin of node %s", w.Node, p.peer.Node)
	}
	return w.Node, nil
}

// apply applies a batch. It uses several transactions if the artificial lag or the limits of a batch require it.
func (p *puller) apply(batch []replog.Entry) error {
	for len(batch) > 0 {
		due := 0
		var wait time.Duration
		for due < len(batch) && due < batchEntries {
			// If the clocks of the nodes differ, the wait must still not exceed the lag.
			wait = min(time.Until(time.UnixMicro(batch[due].AtUS))+p.n.cfg.Lag, p.n.cfg.Lag)
			if p.n.cfg.Lag > 0 && wait > 0 {
				break
			}
			due++
		}
		if due == 0 {
			if !replog.Pause(p.ctx, wait) {
				return p.ctx.Err()
			}
			due = 1
		}
		if err := p.transact(batch[:due]); err != nil {
			return err
		}
		batch = batch[due:]
	}
	return nil
}

// transact applies entries in one transaction.
func (p *puller) transact(batch []replog.Entry) (err error) {
	n := p.n
	unlock, err := n.db.LockWriter(p.ctx)
	if err != nil {
		return err
	}
	defer unlock()
	k, err := n.retention()
	if err != nil {
		return err
	}
	l := n.ledger
	err = replog.Transact(l.conn, func() error {
		for i := range batch {
			if err := l.apply(&batch[i], k); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		n.Drop()
		return err
	}
	last := batch[len(batch)-1].AtUS
	n.mu.Lock()
	defer n.mu.Unlock()
	// The next change of this node must be later than every change that it knows.
	for origin, m := range l.next.heads {
		if origin != l.self {
			n.clock.Observe(m.atUS)
			n.watermarks[origin] = max(n.watermarks[origin], m.atUS)
		}
	}
	n.lag = max(0, time.Since(time.UnixMicro(last)))
	n.publish()
	return nil
}
