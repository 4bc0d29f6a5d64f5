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

// smallMessage bounds all messages of a node that gets changes.
const smallMessage = 64 << 10

// ErrMessage is met when a message is not the one that must come.
var ErrMessage = errors.New("message out of place")

// Feed is the other end of a Link: entries go out and acknowledgements come back.
type Feed struct {
	*bufio.Writer
	Due  bool // a heartbeat is
	Left bool // this node stops, and no client is there any more

	conn  net.Conn
	in    io.Reader
	every time.Duration    // between heartbeats
	left  <-chan struct{}  // closed when Left is to be set
	late  <-chan time.Time // after that, when it has been waited for long enough
	beat  <-chan time.Time
	gone  chan struct{} // closed when the other node is heard no more
}

// NewFeed returns the feed of a connection; in is what is read from it. Left is closed when this node stops and no
// client is there any more.
func NewFeed(conn net.Conn, in io.Reader, every time.Duration, left <-chan struct{}) *Feed {
	return &Feed{
		Writer: bufio.NewWriterSize(conn, 64<<10), conn: conn, in: in, every: every, left: left, gone: make(chan struct{}),
	}
}

// Hello reads the first message of the other node.
func (f *Feed) Hello(kind Kind, hello any) error {
	if err := f.conn.SetDeadline(time.Now().Add(HandshakeTime)); err != nil {
		return err
	}
	body, err := f.expect(kind, "a hello")
	if err != nil {
		return err
	}
	return json.Unmarshal(body, hello)
}

func (f *Feed) expect(kind Kind, what string) ([]byte, error) {
	got, body, err := Read(f.in, smallMessage)
	if err == nil && got != kind {
		err = fmt.Errorf("%w: %q where %s should be", ErrMessage, got, what)
	}
	return body, err
}

// Refuse is the answer to a hello that ends the connection.
func (f *Feed) Refuse(refusal any) error {
	return errors.Join(WriteJSON(f, KindRefusal, refusal), f.Flush())
}

// Deadline must be called before each message.
func (f *Feed) Deadline() error { return f.conn.SetWriteDeadline(time.Now().Add(Patience)) }

// Entry sends an entry; Flush is up to the caller.
func (f *Feed) Entry(e *Entry) error {
	if err := f.Deadline(); err != nil {
		return err
	}
	return WriteEntry(f.Writer, e)
}

// Run calls acknowledged with what the other node acknowledges until send returns, and ends the connection.
func (f *Feed) Run(acknowledged func(int64), send func() error) error {
	heard := make(chan error, 1)
	go func() {
		heard <- f.listen(acknowledged)
		close(f.gone)
	}()
	beat := time.NewTicker(f.every)
	defer beat.Stop()
	f.beat = beat.C
	err := send()
	// Ends listen.
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

// Wait waits, in what Run calls, until there is something to send: something has changed, or a heartbeat is due. It
// returns false when the other node has gone, or this one has waited for it for long enough.
func (f *Feed) Wait(changed <-chan struct{}) bool {
	select {
	case <-changed:
	case <-f.beat:
		f.Due = true
	case <-f.left:
		f.Left, f.left, f.late = true, nil, time.After(Farewell)
	case <-f.late:
		return false
	case <-f.gone:
		return false
	}
	return true
}

func (f *Feed) listen(acknowledged func(int64)) error {
	for {
		if err := f.conn.SetReadDeadline(time.Now().Add(Patience)); err != nil {
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
		acknowledged(position[0])
	}
}
