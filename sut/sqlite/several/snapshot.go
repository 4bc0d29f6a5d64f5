package several

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"path/filepath"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// What may be wrong with a node that was away for long.
var (
	errBehind = errors.New("a snapshot is needed")   // changes alone will not do
	errLost   = errors.New("a snapshot will not do") // it would take away what is only here
)

// snapshot sends the whole database as it is now.
func (l *link) snapshot() error {
	err := replog.Snapshot{
		Conn: l.disk, Dir: filepath.Dir(l.n.host.Incoming()), Every: beatInterval, Deadline: l.deadline,
		Beat: func() error { return l.end(nil) },
	}.Send(l.out)
	if err != nil {
		return err
	}
	return l.out.Flush()
}

// rebuild fetches the whole database, unless that has been done since it was
// found out that it must be.
func (p *pull) rebuild(replaced int64) error {
	n := p.n
	select {
	case n.rebuilding <- struct{}{}:
	case <-p.ctx.Done():
		return p.ctx.Err()
	}
	defer func() { <-n.rebuilding }()
	n.mu.Lock()
	done := n.replaced != replaced
	n.mu.Unlock()
	if done {
		return nil
	}
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(p.ctx, "tcp", p.peer.Address)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(p.ctx, func() { _ = conn.Close() })()
	_, in, _, err := p.introduce(conn, true)
	if err == nil {
		err = p.download(conn, in)
	}
	if err == nil {
		err = p.install()
	}
	if err != nil {
		return err
	}
	n.cfg.Log.Info("the database was fetched anew", "from", p.peer.Node)
	return nil
}

// download receives a snapshot into a file of its own.
func (p *pull) download(conn net.Conn, in io.Reader) error {
	return replog.Receive(p.n.host.Incoming(), func() ([]byte, error) {
		for {
			kind, body, err := p.next(conn, in)
			switch {
			case err != nil:
				return nil, err
			case kind == kindUpTo:
				continue
			case kind != replog.KindSnapshot:
				return nil, fmt.Errorf("%w: %q in a snapshot", errMessage, kind)
			}
			return body, nil
		}
	})
}

// whole returns what the log must keep, or that there is no database: one that could
// not be opened after it had been replaced. A restart opens it again.
func (n *Node) whole() (keep, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.replacing {
		return keep{}, errors.New("the database has been replaced and could not be opened")
	}
	return n.keep(), nil
}

// install puts the snapshot in the place of the database.
func (p *pull) install() error {
	n := p.n
	leave, err := n.host.Turn(p.ctx.Done)
	if err != nil {
		return err
	}
	defer leave()
	if _, err := n.whole(); err != nil {
		return err
	}
	if err := n.ledger.join(n.host.Incoming()); err != nil {
		return err
	}
	n.mu.Lock()
	n.replacing = true
	for l := range n.links {
		_ = l.conn.Close()
	}
	n.mu.Unlock()
	// A connection to the old file that is closed after the new one is in its
	// place could take the new one's log away.
	n.files.Lock()
	defer n.files.Unlock()
	conn, err := n.host.Replace()
	if err == nil {
		n.ledger, err = openLedger(conn, n.cfg.Node, 0, n.cfg.Limits)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.replacing = err != nil
	if err == nil {
		n.replaced++
		n.opened()
		n.announce()
	}
	return err
}

// join makes the file of a snapshot this database: the same origin, with all that
// its log has and the snapshot has not. Should changes that were made here be
// missing in both, it fails.
func (l *ledger) join(path string) (err error) {
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadWrite)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	if err := replog.Run(conn, "begin immediate", nil, nil); err != nil {
		return err
	}
	if err := replog.Run(conn, `update replication_self set origin = ?`, []any{l.self}, nil); err != nil {
		return err
	}
	to, err := openLedger(conn, nodeOf(l.self), 0, l.limits)
	if err != nil {
		return err
	}
	everything := &hello{All: true, Have: map[string]int64{}}
	for after := int64(0); after < l.now.position; {
		found, err := entries(l.conn, after, min(after+batchEntries, l.now.position), everything, "")
		if err != nil {
			return err
		}
		for i := range found {
			err := to.apply(&found[i], keep{after: math.MaxInt64})
			// Those of others their origins still have, and of its own there is a
			// look at the end.
			if err != nil && !errors.Is(err, errGap) {
				return err
			}
		}
		after = following(after, found)
	}
	if own, had := to.next.marks[l.self].seq, l.now.marks[l.self].seq; own < had {
		return fmt.Errorf("%w: of %d changes that were made here and are nowhere else the first are in no log any more", errLost, had-own)
	}
	return replog.Run(conn, "commit", nil, nil)
}

// following is the position up to which the log was read.
func following(after int64, found []Entry) int64 {
	if size(found) > batchBytes {
		return found[len(found)-1].Position
	}
	return after + batchEntries
}
