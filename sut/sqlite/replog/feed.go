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
	Gone chan struct{} // closed when the other node is heard no more
	conn net.Conn
	in   io.Reader
}

// NewFeed returns the feed of a connection; in is what is read from it.
func NewFeed(conn net.Conn, in io.Reader) *Feed {
	return &Feed{Writer: bufio.NewWriterSize(conn, 64<<10), Gone: make(chan struct{}), conn: conn, in: in}
}

// Hello reads the first message of the other node.
func (f *Feed) Hello(kind Kind, hello any) error {
	if err := f.conn.SetDeadline(time.Now().Add(HandshakeTime)); err != nil {
		return err
	}
	got, body, err := Read(f.in, smallMessage)
	if err == nil && got != kind {
		err = fmt.Errorf("%w: %q where a hello should be", ErrMessage, got)
	}
	if err != nil {
		return err
	}
	return json.Unmarshal(body, hello)
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
		close(f.Gone)
	}()
	err := send()
	// Ends listen.
	_ = f.Flush()
	_ = f.conn.Close()
	<-f.Gone
	if err == nil {
		err = <-heard
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}

func (f *Feed) listen(acknowledged func(int64)) error {
	for {
		if err := f.conn.SetReadDeadline(time.Now().Add(Patience)); err != nil {
			return err
		}
		kind, body, err := Read(f.in, smallMessage)
		if err == nil && kind != KindAck {
			err = fmt.Errorf("%w: %q where an acknowledgement should be", ErrMessage, kind)
		}
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
