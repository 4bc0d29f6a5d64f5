package replog

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"time"
)

// The patience of two nodes with each other.
const (
	Silence       = 2 * time.Second  // after which a node that sends changes is taken for dead
	Patience      = 30 * time.Second // with a node that takes or acknowledges nothing
	HandshakeTime = 5 * time.Second
	Farewell      = time.Second // for the last acknowledgement to come
)

// Pause waits for that long. It returns false when the context ends before that.
func Pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// Link is a connection to a node that sends changes, and is never silent for long.
type Link struct {
	net.Conn
	in      *bufio.Reader
	release func() bool
}

// Dial connects to another node and says hello. The connection ends with the context, or with Close.
func Dial(ctx context.Context, address string, kind Kind, hello any) (*Link, error) {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	l := &Link{Conn: conn, release: context.AfterFunc(ctx, func() { _ = conn.Close() })}
	l.in = bufio.NewReaderSize(l, 64<<10)
	out := bufio.NewWriter(conn)
	_, err = out.Write(Start())
	if err = errors.Join(err, WriteJSON(out, kind, hello), out.Flush()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close ends the connection.
func (l *Link) Close() error {
	l.release()
	return l.Conn.Close()
}

// Read reads, and waits for a live node: the deadline is for each read, not for the size of a message.
func (l *Link) Read(p []byte) (int, error) {
	if err := l.SetReadDeadline(time.Now().Add(Silence)); err != nil {
		return 0, err
	}
	return l.Conn.Read(p)
}

// Next reads a message.
func (l *Link) Next() (Kind, []byte, error) { return Read(l.in, MaxBody) }

// Answer reads the answer to the hello, which is one or the other.
func (l *Link) Answer(welcome, refusal any) (welcomed bool, err error) {
	kind, body, err := l.Next()
	switch {
	case err != nil:
		return false, err
	case kind == KindWelcome:
		return true, json.Unmarshal(body, welcome)
	case kind == KindRefusal:
		return false, json.Unmarshal(body, refusal)
	}
	return false, fmt.Errorf("%w: %q where an answer should be", ErrMessage, kind)
}

// Snapshot receives a snapshot into a file; heartbeats of that kind may come in between.
func (l *Link) Snapshot(path string, beat Kind) (err error) {
	file, err := os.Create(path)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, file.Close()) }()
	for {
		kind, body, err := l.Next()
		switch {
		case err != nil:
			return err
		case kind == beat:
			continue
		case kind != KindSnapshot:
			return fmt.Errorf("message %q in a snapshot", kind)
		case len(body) == 0:
			return file.Sync()
		}
		if _, err := file.Write(body); err != nil {
			return err
		}
	}
}

// Acknowledge tells the other node how far this one is.
func (l *Link) Acknowledge(position int64) error {
	return errors.Join(l.SetWriteDeadline(time.Now().Add(Silence)), WriteNumbers(l, KindAck, position))
}
