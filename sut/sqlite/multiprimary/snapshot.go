package multiprimary

import (
	"errors"
	"fmt"
	"math"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// Errors of a node that was away for longer than the logs reach back.
var (
	errNeedsSnapshot = errors.New("a snapshot is needed")
	errSnapshotLoses = errors.New("installing a snapshot would lose changes of this node")
)

// snapshot sends the whole database.
func (s *sender) snapshot() error {
	beat, made := func() error { return s.endBatch(nil) }, func(string) error { return nil }
	err := s.Snapshot(s.disk, s.n.db.Dir(), beat, made)
	if err != nil {
		return err
	}
	return s.Flush()
}

// rebuild fetches a snapshot and installs it. It does nothing if the database was replaced since connect returned
// replaced.
func (p *puller) rebuild(replaced int64) error {
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
	link, _, _, err := p.connect(true)
	if err != nil {
		return err
	}
	defer link.Close()
	if err := link.Snapshot(n.db.Incoming(), kindWatermarks); err != nil {
		return err
	}
	if err := p.install(); err != nil {
		return err
	}
	n.logger.Info("the database was replaced with a snapshot", "from", p.peer.Node)
	return nil
}

// retention returns the data that the log must keep. It returns an error if the database could not be opened after it
// was replaced.
func (n *Node) retention() (retention, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.replacing {
		return retention{}, errors.New("the database was replaced and could not be opened: restart this node")
	}
	return n.retentionLocked(), nil
}

// install replaces the database with the received snapshot.
func (p *puller) install() error {
	n := p.n
	unlock, err := n.db.LockWriter(p.ctx)
	if err != nil {
		return err
	}
	defer unlock()
	if _, err := n.retention(); err != nil {
		return err
	}
	if err := n.ledger.merge(n.db.Incoming()); err != nil {
		return err
	}
	n.mu.Lock()
	n.replacing = true
	known := n.knownEpoch
	for s := range n.senders {
		_ = s.conn.Close()
	}
	n.mu.Unlock()
	// Wait until no other connection uses the old file. If one were closed later, SQLite could remove the write-ahead log
	// of the new file.
	n.files.Lock()
	defer n.files.Unlock()
	err = n.db.Replace(-1) // merge has added all changes of the old file to the snapshot
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
		n.loadProgress()
		n.notify()
	}
	return err
}

// merge prepares the file of a snapshot to replace this database. It gives the file the origin name of this database
// and applies all entries of this log that the snapshot does not have. It returns errSnapshotLoses if changes of this
// origin are neither in the snapshot nor in this log.
func (l *ledger) merge(path string) (err error) {
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
			found, err := readEntries(l.conn, after, min(after+batchEntries, l.now.Last), everything, "")
			if err != nil {
				return err
			}
			for i := range found {
				err := to.apply(&found[i], retention{after: math.MaxInt64})
				// A gap in another origin's changes is no loss: the other nodes have them. For this origin, the check below
				// finds it.
				if err != nil && !errors.Is(err, errGap) {
					return err
				}
			}
			after = found[len(found)-1].Position
		}
		if own, had := to.next.heads[l.self].seq, l.now.heads[l.self].seq; own < had {
			const text = "%w: only this node has its last %d changes, and the first of them are no longer in its log"
			return fmt.Errorf(text, errSnapshotLoses, had-own)
		}
		return nil
	})
}
