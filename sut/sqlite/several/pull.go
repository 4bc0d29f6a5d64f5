package several

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// pull is another node as this one gets changes from it. What is received and not
// yet applied when the connection breaks is asked for again.
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

// end ends it.
func (p *pull) end() {
	p.stop()
	<-p.done
}

// run connects until it is told to end.
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
			p.n.cfg.Log.Warn("no changes from another primary", "origin", p.peer.Node, "cause", err)
		}
		select {
		case <-p.ctx.Done():
			return
		case <-time.After(pause):
		}
		pause = min(2*pause, max(pause, longest))
	}
}

// receive gets changes over one connection until it breaks.
func (p *pull) receive() error {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(p.ctx, "tcp", p.peer.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(p.ctx, func() { _ = conn.Close() })()
	replaced, in, origin, err := p.introduce(conn, false)
	if errors.Is(err, errBehind) {
		_ = conn.Close()
		if failed := p.rebuild(replaced); failed != nil {
			err = fmt.Errorf("%w; %w", err, failed)
		}
		return err
	}
	if err != nil {
		return err
	}
	p.n.mu.Lock()
	p.connected, p.problem = true, ""
	p.n.mu.Unlock()
	var batch []Entry
	for {
		kind, body, err := p.next(conn, in)
		if err != nil {
			// What came whole is good, and its origin may be gone for good.
			return errors.Join(err, p.apply(batch))
		}
		switch kind {
		case kindChange:
			e, err := parseEntry(body)
			if err != nil {
				return err
			}
			batch = append(batch, *e)
		case kindUpTo:
			var end upTo
			if err := json.Unmarshal(body, &end); err != nil {
				return err
			}
			if err := p.apply(batch); err != nil {
				return err
			}
			batch = nil
			p.n.hears(end.UpTo)
			if err := p.acknowledge(conn, origin); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%w: %q among changes", errMessage, kind)
		}
	}
}

// introduce begins a connection. It returns as which origin the other node makes
// changes, and how often the database here had been replaced when it was said
// what it has.
func (p *pull) introduce(conn net.Conn, snapshot bool) (replaced int64, in *bufio.Reader, origin string, err error) {
	p.n.mu.Lock()
	replaced = p.n.replaced
	p.n.mu.Unlock()
	h, err := p.hello()
	if err != nil {
		return replaced, nil, "", err
	}
	h.Snapshot = snapshot
	out := bufio.NewWriter(conn)
	_, err = out.Write(replog.Start())
	if err := errors.Join(err, replog.WriteJSON(out, kindGreeting, h), out.Flush()); err != nil {
		return replaced, nil, "", err
	}
	in = bufio.NewReaderSize(conn, 64<<10)
	origin, err = p.welcome(conn, in)
	return replaced, in, origin, err
}

// hello says what this copy has.
func (p *pull) hello() (*hello, error) {
	p.n.files.RLock()
	defer p.n.files.RUnlock()
	disk, err := p.n.host.Reader()
	if err != nil {
		return nil, err
	}
	schema, err := replog.Schema(disk)
	if err := errors.Join(err, disk.Close()); err != nil {
		return nil, err
	}
	h := &hello{Node: p.n.cfg.Node, Origin: p.n.self, To: p.peer.Node, Schema: schema, All: p.all, Have: map[string]int64{}}
	p.n.mu.Lock()
	defer p.n.mu.Unlock()
	for origin, m := range p.n.seen.marks {
		h.Have[origin] = m.seq
	}
	return h, nil
}

// next reads a message of the origin, which is never silent for long.
func (p *pull) next(conn net.Conn, in io.Reader) (replog.Kind, []byte, error) {
	return replog.Read(patient{Reader: in, conn: conn}, replog.MaxBody)
}

// patient is a reader that gives each of its reads some time: the deadline is for
// silence, not for the size of a message.
type patient struct {
	io.Reader
	conn net.Conn
}

// Read reads, and waits for a live origin.
func (r patient) Read(b []byte) (int, error) {
	if err := r.conn.SetReadDeadline(time.Now().Add(silence)); err != nil {
		return 0, err
	}
	return r.Reader.Read(b)
}

// welcome reads the answer to the hello, and returns as which origin the other
// node makes changes.
func (p *pull) welcome(conn net.Conn, in io.Reader) (origin string, err error) {
	kind, body, err := p.next(conn, in)
	if err != nil {
		return "", err
	}
	switch kind {
	case replog.KindRefusal:
		var r refusal
		if err := json.Unmarshal(body, &r); err != nil {
			return "", err
		}
		err := fmt.Errorf("refused: %s", r.Reason)
		if r.Behind {
			err = fmt.Errorf("%w: %s", errBehind, r.Reason)
		}
		return "", err
	case replog.KindWelcome:
		var w welcome
		if err := json.Unmarshal(body, &w); err != nil {
			return "", err
		}
		if nodeOf(w.Origin) != p.peer.Node {
			return "", fmt.Errorf("the other node makes changes as %q", w.Origin)
		}
		return w.Origin, nil
	}
	return "", fmt.Errorf("%w: %q where a welcome should be", errMessage, kind)
}

// acknowledge tells the origin how much of its own is here.
func (p *pull) acknowledge(conn net.Conn, origin string) error {
	p.n.mu.Lock()
	seq := p.n.seen.marks[origin].seq
	p.n.mu.Unlock()
	if err := conn.SetWriteDeadline(time.Now().Add(silence)); err != nil {
		return err
	}
	return replog.WriteNumbers(conn, replog.KindAck, seq)
}

// apply applies a batch in as few transactions as the artificial lag allows.
func (p *pull) apply(batch []Entry) error {
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
			select {
			case <-time.After(wait):
			case <-p.ctx.Done():
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
func (p *pull) transact(batch []Entry) (err error) {
	n := p.n
	leave, err := n.host.Turn(p.ctx.Done)
	if err != nil {
		return err
	}
	defer leave()
	k, err := n.whole()
	if err != nil {
		return err
	}
	l := n.ledger
	if err := replog.Run(l.conn, "begin immediate", nil, nil); err != nil {
		return err
	}
	for i := range batch {
		if err = l.apply(&batch[i], k); err != nil {
			break
		}
	}
	if err == nil {
		err = replog.Run(l.conn, "commit", nil, nil)
	}
	if err != nil {
		n.Drop()
		return errors.Join(err, rollback(l))
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

// rollback takes the open transaction back, unless SQLite has done so.
func rollback(l *ledger) error {
	if l.conn.AutocommitEnabled() {
		return nil
	}
	return replog.Run(l.conn, "rollback", nil, nil)
}
