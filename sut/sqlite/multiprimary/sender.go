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

// Constants of a connection between two nodes.
const (
	heartbeatInterval = 100 * time.Millisecond
	batchEntries      = 64 // maximum number of entries that are sent or applied together
	batchBytes        = 1 << 20
)

// sender sends changes to one other node and receives its acknowledgements.
type sender struct {
	*replog.Feed
	n     *Node
	conn  net.Conn
	disk  *sqlite.Conn
	hello hello

	// Guarded by Node.mu.
	sent  int64 // position of the last sent entry, or of a later one that the other node does not want
	acked int64 // index of this origin's last change that the other node has applied
}

// Serve sends changes to another node until that node disconnects or this node stops. It reads from in and writes to
// conn. The caller closes the connection.
func (n *Node) Serve(conn net.Conn, in io.Reader) {
	s := &sender{Feed: replog.NewFeed(conn, in, heartbeatInterval, n.clientsGone), n: n, conn: conn}
	n.files.RLock()
	defer n.files.RUnlock()
	if err := n.db.Read(s.serve); err != nil {
		n.logger.Warn("sending changes to another node", "cause", err)
	}
}

func (s *sender) serve(disk *sqlite.Conn) error {
	n := s.n
	s.disk = disk
	if err := s.greet(); err != nil {
		return err
	}
	n.mu.Lock()
	n.senders[s] = struct{}{}
	replacing := n.replacing
	n.mu.Unlock()
	defer func() {
		n.mu.Lock()
		defer n.mu.Unlock()
		delete(n.senders, s)
	}()
	switch {
	case replacing:
		return errors.New("the database is being replaced")
	case s.hello.Snapshot:
		return s.snapshot()
	}
	return s.Run(func(seq int64) error {
		n.mu.Lock()
		defer n.mu.Unlock()
		if own := n.durable.heads[n.self].seq; seq > own {
			return fmt.Errorf("%w: %d, but there are only %d", replog.ErrAcknowledgement, seq, own)
		}
		s.acked = max(s.acked, seq)
		n.notify()
		return nil
	}, s.send)
}

// greet reads the hello and answers it. Afterwards sent is the position before the first entry that the node needs.
func (s *sender) greet() error {
	switch err := s.Hello(kindGreeting, &s.hello); {
	case errors.Is(err, replog.ErrMessage):
		return errors.Join(err, s.Refuse(replog.Refusal{Reason: "this node is multi-primary and has no replicas"}))
	case err != nil:
		return err
	}
	refusal, err := s.check()
	if err != nil {
		return err
	}
	if refusal.Reason != "" && !(refusal.Behind && s.hello.Snapshot) {
		return errors.Join(s.Refuse(refusal), fmt.Errorf("refused node %s: %s", s.hello.Node, refusal.Reason))
	}
	if s.hello.Have == nil {
		s.hello.Have = map[string]int64{}
	}
	return replog.WriteJSON(s, replog.KindWelcome, replog.Welcome{Node: s.n.self})
}

// check returns a Refusal with a reason if this node cannot send the wanted changes. Otherwise it sets sent and acked.
func (s *sender) check() (_ replog.Refusal, err error) {
	h, node := &s.hello, s.n.cfg.Node
	if h.To != node {
		return replog.Refusal{Reason: fmt.Sprintf("this is node %s, not %s: the address is wrong", node, h.To)}, nil
	}
	if err := s.n.cfg.CheckMember(h.Node); err != nil {
		return replog.Refusal{Reason: err.Error()}, nil
	}
	// One transaction, so that all queries see the same state of the log.
	if err := replog.Exec(s.disk, "begin"); err != nil {
		return replog.Refusal{}, err
	}
	defer func() { err = errors.Join(err, replog.Exec(s.disk, "rollback")) }()
	schema, err := replog.Schema(s.disk)
	if err != nil {
		return replog.Refusal{}, err
	}
	if h.Schema != schema {
		reason := fmt.Sprintf("schema differs: node %s has %s, node %s has %s", node, schema, h.Node, h.Schema)
		return replog.Refusal{Reason: reason, Behind: h.Schema == replog.NoSchema()}, nil
	}
	heads := map[string]int64{}
	err = replog.Run(s.disk, `select origin, seq from replication_origins`, nil, func(row *sqlite.Stmt) {
		heads[row.ColumnText(0)] = row.ColumnInt64(1)
	})
	if err == nil {
		s.sent, err = replog.Number(s.disk, `select coalesce(max(position), 0) from replication_changes`)
	}
	if err != nil {
		return replog.Refusal{}, err
	}
	if own := heads[s.n.self]; h.Have[s.n.self] > own {
		const text = "node %[1]s has lost changes: it has %[2]d of its own, node %[3]s has %[4]d of them"
		return replog.Refusal{Reason: fmt.Sprintf(text, node, own, h.Node, h.Have[s.n.self])}, nil
	}
	s.acked = h.Have[s.n.self]
	for origin, seq := range heads {
		have := h.Have[origin]
		if have >= seq || !h.wants(origin, node) {
			continue
		}
		const at = `select position from replication_changes where origin = ? and seq = ?`
		next, err := replog.Number(s.disk, at, origin, have+1)
		switch {
		case err != nil:
			return replog.Refusal{}, err
		case next == 0:
			const text = "too far behind: the log of node %s no longer has change %d of %s, which node %s needs"
			return replog.Refusal{Reason: fmt.Sprintf(text, node, have+1, origin, h.Node), Behind: true}, nil
		}
		s.sent = min(s.sent, next-1)
	}
	return replog.Refusal{}, nil
}

// send sends new entries at once, and heartbeats. It returns nil when the other node has disconnected. If this node
// stops, it first waits until the other node has acknowledged all changes of this origin.
func (s *sender) send() error {
	s.HeartbeatDue = true
	for {
		// The watermarks must be taken before the log is read, see currentWatermarks.
		watermarks := s.n.currentWatermarks()
		s.n.mu.Lock()
		changed, last := s.n.changed, s.n.durable.Last
		stopping := s.n.stopping || s.ClientsGone && s.acked >= s.n.durable.heads[s.n.self].seq
		s.n.mu.Unlock()
		if stopping {
			return nil
		}
		sent, more, err := s.sendBatch(last)
		if err != nil {
			return err
		}
		if sent || s.HeartbeatDue {
			if more {
				watermarks = nil
			}
			s.HeartbeatDue = false
			if err := s.endBatch(watermarks); err != nil {
				return err
			}
		}
		if !more && !s.Wait(changed) {
			return nil
		}
	}
}

// sendBatch sends the next entries up to the position last. more is true if the log has further positions up to last.
func (s *sender) sendBatch(last int64) (sent, more bool, err error) {
	to := min(last, s.sent+batchEntries)
	if to <= s.sent {
		return false, false, nil
	}
	found, err := readEntries(s.disk, s.sent, to, &s.hello, s.n.cfg.Node)
	if err != nil {
		return false, false, err
	}
	for i := range found {
		e := &found[i]
		if have := s.hello.Have[e.Origin]; e.Seq != have+1 {
			return false, false, fmt.Errorf("the log no longer has change %d of %s", have+1, e.Origin)
		}
		if err := s.Entry(e); err != nil {
			return false, false, err
		}
		s.hello.Have[e.Origin] = e.Seq
	}
	if count := len(found); count > 0 && size(found) > batchBytes {
		to = found[count-1].Position // readEntries stopped here, the next batch has the rest
	}
	s.n.mu.Lock()
	s.sent = to
	s.n.mu.Unlock()
	return len(found) > 0, to < last, nil
}

// size returns the size of entries as readEntries counts it.
func size(all []replog.Entry) (bytes int) {
	for i := range all {
		bytes += len(all[i].Changes) + 64
	}
	return bytes
}

// endBatch sends the watermarks of the origins that the other node wants. It changes the map.
func (s *sender) endBatch(watermarks map[string]int64) error {
	maps.DeleteFunc(watermarks, func(origin string, _ int64) bool { return !s.hello.wants(origin, s.n.cfg.Node) })
	if err := s.Deadline(); err != nil {
		return err
	}
	return errors.Join(replog.WriteJSON(s, kindWatermarks, watermarks), s.Flush())
}
