package multiprimary

import (
	"errors"
	"fmt"
	"math"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// What may be wrong with a node that was away for long.
var (
	errBehind = errors.New("a snapshot is needed")   // changes alone will not do
	errLost   = errors.New("a snapshot will not do") // it would take away what is only here
)

func (l *link) snapshot() error {
	beat, made := func() error { return l.end(nil) }, func(string) error { return nil }
	err := l.Snapshot(l.disk, l.n.db.Dir(), beat, made)
	if err != nil {
		return err
	}
	return l.Flush()
}

// rebuild fetches the whole database, unless that has been done since it was found out that it must be.
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
	link, _, _, err := p.introduce(true)
	if err != nil {
		return err
	}
	defer link.Close()
	if err := link.Snapshot(n.db.Incoming(), kindUpTo); err != nil {
		return err
	}
	if err := p.install(); err != nil {
		return err
	}
	n.logger.Info("the database was fetched anew", "from", p.peer.Node)
	return nil
}

// whole returns what the log must keep, or that there is no database: one that could not be opened after it had been
// replaced. A restart opens it again.
func (n *Node) whole() (keep, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.replacing {
		return keep{}, errors.New("the database has been replaced and could not be opened")
	}
	return n.keep(), nil
}

func (p *pull) install() error {
	n := p.n
	unlock, err := n.db.LockWriter(p.ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := n.whole(); err != nil {
		return err
	}
	if err := n.ledger.join(n.db.Incoming()); err != nil {
		return err
	}
	n.mu.Lock()
	n.replacing = true
	known := n.known
	for l := range n.links {
		_ = l.conn.Close()
	}
	n.mu.Unlock()
	// A connection to the old file that is closed later could take the new one's log away.
	n.files.Lock()
	defer n.files.Unlock()
	err = n.db.Replace(-1) // the snapshot has all that was here
	conn, _ := n.db.Conn()
	if err == nil {
		_, err = replog.RaiseEpoch(conn, known)
	}
	if err == nil {
		n.ledger, err = openLedger(conn, n.cfg.Node, 0, n.cfg.Limits())
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

// join makes the file of a snapshot this database: the same origin, with all that its log has and the snapshot has
// not. Should changes that were made here be missing in both, it fails.
func (l *ledger) join(path string) (err error) {
	conn, err := sqlite.OpenConn(path, sqlite.OpenReadWrite)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, conn.Close()) }()
	return replog.Transact(conn, func() error {
		if err := replog.Exec(conn, `update replication_self set origin = ?`, l.self); err != nil {
			return err
		}
		to, err := openLedger(conn, nodeOf(l.self), 0, l.limits)
		if err != nil {
			return err
		}
		everything := &hello{All: true, Have: map[string]int64{}}
		for after := max(l.now.First, 1) - 1; after < l.now.Last; {
			found, err := entries(l.conn, after, min(after+batchEntries, l.now.Last), everything, "")
			if err != nil {
				return err
			}
			for i := range found {
				err := to.apply(&found[i], keep{after: math.MaxInt64})
				// Those of others their origins still have, and of its own there is a look at the end.
				if err != nil && !errors.Is(err, errGap) {
					return err
				}
			}
			after = found[len(found)-1].Position
		}
		if own, had := to.next.marks[l.self].seq, l.now.marks[l.self].seq; own < had {
			return fmt.Errorf("%w: of %d changes that only this node has the first are in no log any more", errLost, had-own)
		}
		return nil
	})
}
