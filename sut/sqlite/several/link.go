package several

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"zombiezen.com/go/sqlite"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// The rhythm between two nodes.
const (
	beatInterval  = 100 * time.Millisecond
	silence       = 2 * time.Second  // after which an origin is taken for dead
	patience      = 30 * time.Second // with a node that takes or acknowledges nothing
	farewell      = time.Second      // for the last acknowledgement to come
	batchEntries  = 64               // sent and applied together
	batchBytes    = 1 << 20
	handshakeTime = 5 * time.Second
)

// link is a node that gets changes from this one: a connection on which they go
// out and acknowledgements come back.
type link struct {
	n     *Node
	conn  net.Conn
	in    io.Reader
	out   *bufio.Writer
	disk  *sqlite.Conn
	hello hello
	gone  chan struct{} // closed when the other one is heard no more

	// Guarded by Node.mu.
	sent  int64 // position
	acked int64 // the last change made here that the other one has
}

// Serve gives another node what it asks for until it goes, or this one does. It
// owns neither the connection nor in, which is what is read from it.
func (n *Node) Serve(conn net.Conn, in io.Reader) (err error) {
	n.files.RLock()
	defer n.files.RUnlock()
	l := &link{n: n, conn: conn, in: in, out: bufio.NewWriterSize(conn, 64<<10), gone: make(chan struct{})}
	if l.disk, err = n.host.Reader(); err != nil {
		return err
	}
	defer func() { err = errors.Join(err, l.disk.Close()) }()
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
	heard := make(chan error, 1)
	go func() {
		heard <- l.listen()
		close(l.gone)
	}()
	err = l.send()
	// Ends listen.
	_ = l.out.Flush()
	_ = conn.Close()
	<-l.gone
	if err == nil {
		err = <-heard
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// greet reads the hello and answers it. Afterwards sent is the position before
// the first entry that is wanted.
func (l *link) greet() error {
	if err := l.conn.SetDeadline(time.Now().Add(handshakeTime)); err != nil {
		return err
	}
	kind, body, err := replog.Read(l.in, smallMessage)
	if err != nil {
		return err
	}
	if kind != kindGreeting {
		return errors.Join(errMessage, l.refuse(refusal{Reason: "this node is one of several primaries and has no replicas"}))
	}
	if err := json.Unmarshal(body, &l.hello); err != nil {
		return err
	}
	reason, err := l.refuses()
	if err != nil {
		return err
	}
	if reason.Reason != "" && !(reason.Behind && l.hello.Snapshot) {
		return errors.Join(l.refuse(reason), fmt.Errorf("%s is refused: %s", l.hello.Node, reason.Reason))
	}
	if l.hello.Have == nil {
		l.hello.Have = map[string]int64{}
	}
	return replog.WriteJSON(l.out, replog.KindWelcome, welcome{Origin: l.n.self})
}

func (l *link) refuse(r refusal) error {
	return errors.Join(replog.WriteJSON(l.out, replog.KindRefusal, r), l.out.Flush())
}

// refuses says why the other one cannot get what it wants, if it cannot.
func (l *link) refuses() (_ refusal, err error) {
	h, node := &l.hello, l.n.cfg.Node
	if h.To != node {
		return refusal{Reason: fmt.Sprintf("this is node %s, not %s", node, h.To)}, nil
	}
	// One look at all of the log.
	if err := replog.Run(l.disk, "begin", nil, nil); err != nil {
		return refusal{}, err
	}
	defer func() { err = errors.Join(err, replog.Run(l.disk, "rollback", nil, nil)) }()
	schema, err := replog.Schema(l.disk)
	if err != nil {
		return refusal{}, err
	}
	if h.Schema != schema {
		return refusal{Reason: fmt.Sprintf("schema differs: %s has %s, %s has %s", node, schema, h.Node, h.Schema), Behind: h.Schema == replog.NoSchema()}, nil
	}
	marks := map[string]int64{}
	err = replog.Run(l.disk, `select origin, seq from replication_origins`, nil, func(row *sqlite.Stmt) { marks[row.ColumnText(0)] = row.ColumnInt64(1) })
	if err == nil {
		err = replog.Run(l.disk, `select coalesce(max(position), 0) from replication_changes`, nil, func(row *sqlite.Stmt) { l.sent = row.ColumnInt64(0) })
	}
	if err != nil {
		return refusal{}, err
	}
	if own := marks[l.n.self]; h.Have[l.n.self] > own {
		return refusal{Reason: fmt.Sprintf("%s has %d changes of %s, which has only %d itself: it has lost some", h.Node, h.Have[l.n.self], node, own)}, nil
	}
	l.acked = h.Have[l.n.self]
	for origin, seq := range marks {
		have := h.Have[origin]
		if have >= seq || !h.wants(origin, node) {
			continue
		}
		var next int64
		err := replog.Run(l.disk, `select position from replication_changes where origin = ? and seq = ?`, []any{origin, have + 1}, func(row *sqlite.Stmt) { next = row.ColumnInt64(0) })
		switch {
		case err != nil:
			return refusal{}, err
		case next == 0:
			reason := fmt.Sprintf("too far behind: %s has change %d of %s, and the log of %s does not reach back to the next one", h.Node, have, origin, node)
			return refusal{Reason: reason, Behind: true}, nil
		}
		l.sent = min(l.sent, next-1)
	}
	return refusal{}, nil
}

// listen takes acknowledgements until the connection ends.
func (l *link) listen() error {
	for {
		if err := l.conn.SetReadDeadline(time.Now().Add(patience)); err != nil {
			return err
		}
		kind, body, err := replog.Read(l.in, smallMessage)
		if err != nil {
			return err
		}
		if kind != replog.KindAck {
			return fmt.Errorf("%w: %q where an acknowledgement should be", errMessage, kind)
		}
		seq, err := replog.Numbers(body, 1)
		if err != nil {
			return err
		}
		l.n.mu.Lock()
		l.acked = max(l.acked, seq[0])
		l.n.announce()
		l.n.mu.Unlock()
	}
}

// send sends what is new, as soon as it is. It returns nil when the other node has
// gone, or this one stops and the other one has everything that was made here.
func (l *link) send() error {
	beat := time.NewTicker(beatInterval)
	defer beat.Stop()
	var late <-chan time.Time
	left := l.n.host.Left()
	due := true
	for {
		// Before the log is looked at: all up to these times is in it.
		heard := l.n.upTo()
		l.n.mu.Lock()
		changed, last, ended := l.n.changed, l.n.seen.position, l.n.ended || left == nil && l.acked >= l.n.seen.marks[l.n.self].seq
		l.n.mu.Unlock()
		if ended {
			return nil
		}
		sent, more, err := l.batch(last)
		if err != nil {
			return err
		}
		if sent || due {
			if more {
				heard = nil
			}
			due = false
			if err := l.end(heard); err != nil {
				return err
			}
		}
		if more {
			continue
		}
		select {
		case <-changed:
		case <-l.gone:
			return nil
		case <-left:
			left, late = nil, time.After(farewell)
		case <-late:
			return nil
		case <-beat.C:
			due = true
		}
	}
}

// batch sends the next entries, up to a position at most. More is false when there
// is no other entry up to there.
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
		if err := l.deadline(); err != nil {
			return false, false, err
		}
		if err := writeEntry(l.out, e); err != nil {
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
func size(all []Entry) (bytes int) {
	for i := range all {
		bytes += len(all[i].Changes) + 64
	}
	return bytes
}

// end ends a batch.
func (l *link) end(heard map[string]int64) error {
	if !l.hello.All {
		for origin := range heard {
			if !l.hello.wants(origin, l.n.cfg.Node) {
				delete(heard, origin)
			}
		}
	}
	if err := l.deadline(); err != nil {
		return err
	}
	return errors.Join(replog.WriteJSON(l.out, kindUpTo, upTo{UpTo: heard}), l.out.Flush())
}

func (l *link) deadline() error { return l.conn.SetWriteDeadline(time.Now().Add(patience)) }
