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

// pull is another node as this one gets changes from it. What is received and not yet applied when the connection
// breaks is asked for again.
type pull struct {
	n    *Node
	peer sut.Peer
	all  bool
	ctx  context.Context
	stop context.CancelFunc
	done chan struct{}

	// Guarded by Node.mu.
	connected bool
	problem   string
}

// pull begins to get changes; the lock is held.
func (n *Node) pull(peer sut.Peer, all bool) *pull {
	p := &pull{n: n, peer: peer, all: all, done: make(chan struct{}), problem: "not connected yet"}
	p.ctx, p.stop = context.WithCancel(context.Background())
	go p.run()
	return p
}

func (p *pull) run() {
	defer close(p.done)
	const shortest, longest, hopeless = 50 * time.Millisecond, time.Second, 30 * time.Second
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
		if errors.Is(err, errLost) {
			pause = hopeless
		}
		first := p.connected || p.problem != err.Error()
		p.connected, p.problem = false, err.Error()
		p.n.mu.Unlock()
		if first {
			p.n.logger.Warn("no changes from another primary", "origin", p.peer.Node, "cause", err)
		}
		if !replog.Pause(p.ctx, pause) {
			return
		}
		pause = min(2*pause, max(pause, longest))
	}
}

func (p *pull) receive() error {
	link, replaced, origin, err := p.introduce(false)
	if errors.Is(err, errBehind) {
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
			// What came whole is good, and its origin may be gone for good.
			return errors.Join(err, p.apply(batch))
		}
		switch kind {
		case replog.KindEntry:
			e, err := replog.ParseEntry(body)
			if err != nil {
				return err
			}
			batch = append(batch, *e)
		case kindUpTo:
			var heard map[string]int64
			if err := json.Unmarshal(body, &heard); err != nil {
				return err
			}
			if err := p.apply(batch); err != nil {
				return err
			}
			batch = nil
			p.n.hears(heard)
			p.n.mu.Lock()
			seq := p.n.seen.marks[origin].seq
			p.n.mu.Unlock()
			if err := link.Acknowledge(seq); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: %q among changes", replog.ErrMessage, kind)
		}
	}
}

// introduce begins a connection. It returns as which origin the other node makes changes, and how often the database
// here had been replaced when it was said what it has.
func (p *pull) introduce(snapshot bool) (link *replog.Link, replaced int64, origin string, err error) {
	p.n.mu.Lock()
	replaced = p.n.replaced
	p.n.mu.Unlock()
	h, err := p.hello()
	if err != nil {
		return nil, replaced, "", err
	}
	h.Snapshot = snapshot
	if link, err = replog.Dial(p.ctx, p.peer.Address, kindGreeting, h); err != nil {
		return nil, replaced, "", err
	}
	if origin, err = p.welcome(link); err != nil {
		_ = link.Close()
	}
	return link, replaced, origin, err
}

func (p *pull) hello() (*hello, error) {
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
	for origin, m := range p.n.seen.marks {
		h.Have[origin] = m.seq
	}
	return h, nil
}

// welcome reads the answer to the hello, and returns as which origin the other node makes changes.
func (p *pull) welcome(link *replog.Link) (origin string, err error) {
	var w replog.Welcome
	var r replog.Refusal
	welcomed, err := link.Answer(&w, &r)
	switch {
	case err != nil:
		return "", err
	case !welcomed && r.Behind:
		return "", fmt.Errorf("%w: %s", errBehind, r.Reason)
	case !welcomed:
		return "", fmt.Errorf("refused: %s", r.Reason)
	case nodeOf(w.Node) != p.peer.Node:
		return "", fmt.Errorf("the other node makes changes as %q", w.Node)
	}
	return w.Node, nil
}

// apply applies a batch in as few transactions as the artificial lag allows.
func (p *pull) apply(batch []replog.Entry) error {
	for len(batch) > 0 {
		due := 0
		var wait time.Duration
		for due < len(batch) && due < batchEntries {
			// Where clocks differ nothing waits longer than the lag.
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

func (p *pull) transact(batch []replog.Entry) (err error) {
	n := p.n
	unlock, err := n.db.LockWriter(p.ctx)
	if err != nil {
		return err
	}
	defer unlock()
	k, err := n.whole()
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
	// What is done next here must be later.
	for origin, m := range l.next.marks {
		if origin != l.self {
			n.clock.Observe(m.atUS)
			n.heard[origin] = max(n.heard[origin], m.atUS)
		}
	}
	n.lag = max(0, time.Since(time.UnixMicro(last)))
	n.advance()
	return nil
}
