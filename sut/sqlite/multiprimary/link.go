package multiprimary

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// The rhythm between two nodes.
const (
	heartbeatInterval = 100 * time.Millisecond
	batchEntries      = 64 // sent and applied together
	batchBytes        = 1 << 20
)

// link is a node that gets changes from this one: a connection on which they go out and acknowledgements come back.
type link struct {
	*replog.Feed
	n     *Node
	conn  net.Conn
	disk  *sqlite.Conn
	hello hello

	// Guarded by Node.mu.
	sent  int64 // position
	acked int64 // the last change made here that the other one has
}

// Serve gives another node what it asks for until it goes, or this one does. It owns neither the connection nor in,
// which is what is read from it.
func (n *Node) Serve(conn net.Conn, in io.Reader) {
	l := &link{Feed: replog.NewFeed(conn, in, heartbeatInterval, n.left), n: n, conn: conn}
	n.files.RLock()
	defer n.files.RUnlock()
	if err := n.db.Read(l.serve); err != nil {
		n.logger.Warn("a node that got changes is gone", "cause", err)
	}
}

func (l *link) serve(disk *sqlite.Conn) error {
	n := l.n
	l.disk = disk
	if err := l.greet(); err != nil {
		return err
	}
	n.mu.Lock()
	n.links[l] = struct{}{}
	replacing := n.replacing
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.links, l)
	}()
	switch {
	case replacing:
		return errors.New("the database is being replaced")
	case l.hello.Snapshot:
		return l.snapshot()
	}
	return l.Run(func(seq int64) {
		n.mu.Lock()
		defer n.mu.Unlock()
		l.acked = max(l.acked, seq)
		n.announce()
	}, l.send)
}

// greet reads the hello and answers it. Afterwards sent is the position before the first entry that is wanted.
func (l *link) greet() error {
	switch err := l.Hello(kindGreeting, &l.hello); {
	case errors.Is(err, replog.ErrMessage):
		return errors.Join(err, l.Refuse(replog.Refusal{Reason: "this node is one of several primaries and has no replicas"}))
	case err != nil:
		return err
	}
	reason, err := l.refuses()
	if err != nil {
		return err
	}
	if reason.Reason != "" && !(reason.Behind && l.hello.Snapshot) {
		return errors.Join(l.Refuse(reason), fmt.Errorf("%s is refused: %s", l.hello.Node, reason.Reason))
	}
	if l.hello.Have == nil {
		l.hello.Have = map[string]int64{}
	}
	return replog.WriteJSON(l, replog.KindWelcome, replog.Welcome{Node: l.n.self})
}

// refuses says why the other one cannot get what it wants, if it cannot.
func (l *link) refuses() (_ replog.Refusal, err error) {
	h, node := &l.hello, l.n.cfg.Node
	if h.To != node {
		return replog.Refusal{Reason: fmt.Sprintf("this is node %s, not %s", node, h.To)}, nil
	}
	// One look at all of the log.
	if err := replog.Exec(l.disk, "begin"); err != nil {
		return replog.Refusal{}, err
	}
	defer func() { err = errors.Join(err, replog.Exec(l.disk, "rollback")) }()
	schema, err := replog.Schema(l.disk)
	if err != nil {
		return replog.Refusal{}, err
	}
	if h.Schema != schema {
		reason := fmt.Sprintf("schema differs: %s has %s, %s has %s", node, schema, h.Node, h.Schema)
		return replog.Refusal{Reason: reason, Behind: h.Schema == replog.NoSchema()}, nil
	}
	marks := map[string]int64{}
	err = replog.Run(l.disk, `select origin, seq from replication_origins`, nil, func(row *sqlite.Stmt) {
		marks[row.ColumnText(0)] = row.ColumnInt64(1)
	})
	if err == nil {
		l.sent, err = replog.Number(l.disk, `select coalesce(max(position), 0) from replication_changes`)
	}
	if err != nil {
		return replog.Refusal{}, err
	}
	if own := marks[l.n.self]; h.Have[l.n.self] > own {
		reason := fmt.Sprintf("%s has %d changes of %s, which has lost some: it has %d", h.Node, h.Have[l.n.self], node, own)
		return replog.Refusal{Reason: reason}, nil
	}
	l.acked = h.Have[l.n.self]
	for origin, seq := range marks {
		have := h.Have[origin]
		if have >= seq || !h.wants(origin, node) {
			continue
		}
		const at = `select position from replication_changes where origin = ? and seq = ?`
		next, err := replog.Number(l.disk, at, origin, have+1)
		switch {
		case err != nil:
			return replog.Refusal{}, err
		case next == 0:
			reason := fmt.Sprintf("too far behind: %s has change %d of %s, %s begins later", h.Node, have, origin, node)
			return replog.Refusal{Reason: reason, Behind: true}, nil
		}
		l.sent = min(l.sent, next-1)
	}
	return replog.Refusal{}, nil
}

// send sends what is new, as soon as it is. It returns nil when the other node has gone, or this one stops and the
// other one has everything that was made here.
func (l *link) send() error {
	l.HeartbeatDue = true
	for {
		// Before the log is looked at: all up to these times is in it.
		heard := l.n.upTo()
		l.n.mu.Lock()
		changed, last := l.n.changed, l.n.seen.Last
		ended := l.n.ended || l.ClientsGone && l.acked >= l.n.seen.marks[l.n.self].seq
		l.n.mu.Unlock()
		if ended {
			return nil
		}
		sent, more, err := l.batch(last)
		if err != nil {
			return err
		}
		if sent || l.HeartbeatDue {
			if more {
				heard = nil
			}
			l.HeartbeatDue = false
			if err := l.end(heard); err != nil {
				return err
			}
		}
		if !more && !l.Wait(changed) {
			return nil
		}
	}
}

// batch sends the next entries, up to a position at most. More is false when there is no other entry up to there.
func (l *link) batch(last int64) (sent, more bool, err error) {
	to := min(last, l.sent+batchEntries)
	if to <= l.sent {
		return false, false, nil
	}
	found, err := entries(l.disk, l.sent, to, &l.hello, l.n.cfg.Node)
	if err != nil {
		return false, false, err
	}
	for i := range found {
		e := &found[i]
		if have := l.hello.Have[e.Origin]; e.Seq != have+1 {
			return false, false, fmt.Errorf("the log has no change %d of %s any more", have+1, e.Origin)
		}
		if err := l.Entry(e); err != nil {
			return false, false, err
		}
		l.hello.Have[e.Origin] = e.Seq
	}
	if cut := len(found); cut > 0 && size(found) > batchBytes {
		to = found[cut-1].Position // those behind it were left for the next time
	}
	l.n.mu.Lock()
	l.sent = to
	l.n.mu.Unlock()
	return len(found) > 0, to < last, nil
}

// size is that of entries as they are counted when they are read.
func size(all []replog.Entry) (bytes int) {
	for i := range all {
		bytes += len(all[i].Changes) + 64
	}
	return bytes
}

func (l *link) end(heard map[string]int64) error {
	maps.DeleteFunc(heard, func(origin string, _ int64) bool { return !l.hello.wants(origin, l.n.cfg.Node) })
	if err := l.Deadline(); err != nil {
		return err
	}
	return errors.Join(replog.WriteJSON(l, kindUpTo, heard), l.Flush())
}
