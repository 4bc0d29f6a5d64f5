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

	"github.com/stagebench/stagebench/sut"
)

// Timeouts between two nodes.
const (
	SilenceTimeout   = 2 * time.Second  // a node that sends no message for this long is considered dead
	PeerTimeout      = 30 * time.Second // for a node that reads nothing or acknowledges nothing
	HandshakeTimeout = 5 * time.Second  // for the first message
	LastAckTimeout   = time.Second      // for the last acknowledgement when this node stops
)

// Pause waits for the duration d. It returns false if the context ends first.
func Pause(ctx context.Context, d time.Duration) bool {
	select {
	case <-time.After(d):
		return true
	case <-ctx.Done():
		return false
	}
}

// Link is the receiving end of a connection: it receives changes and sends acknowledgements. The other node sends
// heartbeats, so silence means that it is dead.
type Link struct {
	net.Conn
	in      *bufio.Reader
	release func() bool
}

// Dial connects to another node of the system with a secret and sends the start-up packet and the hello. The connection
// is closed when ctx ends, or by Close.
func Dial(ctx context.Context, address string, secret sut.Secret, kind Kind, hello any) (*Link, error) {
	dialer := net.Dialer{Timeout: time.Second}
	conn, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	l := &Link{Conn: conn, release: context.AfterFunc(ctx, func() { _ = conn.Close() })}
	l.in = bufio.NewReaderSize(l, 64<<10)
	out := bufio.NewWriter(conn)
	_, err = out.Write(StartupPacket(secret))
	if err = errors.Join(err, WriteJSON(out, kind, hello), out.Flush()); err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close closes the connection.
func (l *Link) Close() error {
	l.release()
	return l.Conn.Close()
}

// Read implements io.Reader. Each call has its own deadline, so a large message may take longer than SilenceTimeout.
func (l *Link) Read(p []byte) (int, error) {
	if err := l.SetReadDeadline(time.Now().Add(SilenceTimeout)); err != nil {
		return 0, err
	}
	return l.Conn.Read(p)
}

// Next reads the next message.
func (l *Link) Next() (Kind, []byte, error) { return Read(l.in, MaxBody) }

// Answer reads the answer to the hello into welcome or refusal. It reports whether the hello was accepted.
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
	return false, fmt.Errorf("%w: got %q, want a welcome or a refusal", ErrMessage, kind)
}

// Snapshot receives a snapshot into a file. It ignores messages of the kind beat, which are heartbeats.
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
			return fmt.Errorf("%w: got %q, want a part of a snapshot", ErrMessage, kind)
		case len(body) == 0:
			return file.Sync()
		}
		if _, err := file.Write(body); err != nil {
			return err
		}
	}
}

// Acknowledge tells the other node the last position that is applied here.
func (l *Link) Acknowledge(position int64) error {
	return errors.Join(l.SetWriteDeadline(time.Now().Add(SilenceTimeout)), WriteNumbers(l, KindAck, position))
}
