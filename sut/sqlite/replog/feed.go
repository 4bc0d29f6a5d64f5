package replog

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"
)

// maxPeerMessage bounds in bytes every message from a node that receives changes.
const maxPeerMessage = 64 << 10

// ErrMessage is returned for a message whose type is not the expected one.
var ErrMessage = errors.New("unexpected message")

// Feed is the sending end of a Link. It sends entries and receives acknowledgements.
type Feed struct {
	*bufio.Writer
	HeartbeatDue bool // a heartbeat must be sent
	ClientsGone  bool // this node stops and no client is connected

	conn        net.Conn
	in          io.Reader
	every       time.Duration    // between heartbeats
	clientsGone <-chan struct{}  // closed when ClientsGone must be set
	late        <-chan time.Time // set after ClientsGone: fires when the wait for the last acknowledgement is over
	beat        <-chan time.Time
	gone        chan struct{} // closed when no more can be read from the other node
}

// NewFeed returns the feed of a connection. It reads from in and writes to conn. The caller closes clientsGone when
// this node stops and no client is connected.
func NewFeed(conn net.Conn, in io.Reader, every time.Duration, clientsGone <-chan struct{}) *Feed {
	return &Feed{
		Writer: bufio.NewWriterSize(conn, 64<<10), conn: conn, in: in,
		every: every, clientsGone: clientsGone, gone: make(chan struct{}),
	}
}

// Hello reads the first message of the other node.
func (f *Feed) Hello(kind Kind, hello any) error {
	if err := f.conn.SetDeadline(time.Now().Add(HandshakeTimeout)); err != nil {
		return err
	}
	body, err := f.expect(kind, "a hello")
	if err != nil {
		return err
	}
	return json.Unmarshal(body, hello)
}

func (f *Feed) expect(kind Kind, what string) ([]byte, error) {
	got, body, err := Read(f.in, maxPeerMessage)
	if err == nil && got != kind {
		err = fmt.Errorf("%w: got %q, want %s", ErrMessage, got, what)
	}
	return body, err
}

// Refuse answers a hello with a refusal. The caller closes the connection.
func (f *Feed) Refuse(refusal any) error {
	return errors.Join(WriteJSON(f, KindRefusal, refusal), f.Flush())
}

// Deadline sets the write deadline. Call it before each message.
func (f *Feed) Deadline() error { return f.conn.SetWriteDeadline(time.Now().Add(PeerTimeout)) }

// Entry writes an entry. The caller must call Flush.
func (f *Feed) Entry(e *Entry) error {
	if err := f.Deadline(); err != nil {
		return err
	}
	return WriteEntry(f.Writer, e)
}

// ErrAcknowledgement is returned for an acknowledgement of what was never sent.
var ErrAcknowledgement = errors.New("acknowledgement of an entry that was not sent")

// Run calls send and, in another goroutine, calls acknowledged for each acknowledgement. When send returns, or
// acknowledged returns an error, Run closes the connection. It returns nil if the other node closed the connection.
func (f *Feed) Run(acknowledged func(int64) error, send func() error) error {
	heard := make(chan error, 1)
	go func() {
		heard <- f.listen(acknowledged)
		close(f.gone)
	}()
	beat := time.NewTicker(f.every)
	defer beat.Stop()
	f.beat = beat.C
	err := send()
	// Closing the connection ends listen.
	_ = f.Flush()
	_ = f.conn.Close()
	<-f.gone
	if err == nil {
		err = <-heard
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

// Wait blocks send until data has changed, a heartbeat is due (HeartbeatDue), or this node stops and has no more
// clients (ClientsGone). It returns false when send must end: the other node is gone, or after ClientsGone its last
// acknowledgement did not arrive within LastAckTimeout. Only send may call it.
func (f *Feed) Wait(changed <-chan struct{}) bool {
	select {
	case <-changed:
	case <-f.beat:
		f.HeartbeatDue = true
	case <-f.clientsGone:
		f.ClientsGone, f.clientsGone, f.late = true, nil, time.After(LastAckTimeout)
	case <-f.late:
		return false
	case <-f.gone:
		return false
	}
	return true
}

func (f *Feed) listen(acknowledged func(int64) error) error {
	for {
		if err := f.conn.SetReadDeadline(time.Now().Add(PeerTimeout)); err != nil {
			return err
		}
		body, err := f.expect(KindAck, "an acknowledgement")
		if err != nil {
			return err
		}
		position, err := Numbers(body, 1)
		if err != nil {
			return err
		}
		if err := acknowledged(position[0]); err != nil {
			return err
		}
	}
}
