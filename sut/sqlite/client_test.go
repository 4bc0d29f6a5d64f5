package sqlite_test

import (
	"errors"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/stagebench/stagebench/sut/sqlite"
)

// rawClient is a client that sends and receives single protocol messages.
type rawClient struct {
	*pgproto3.Frontend
	net.Conn
}

// startSession connects and starts a session.
func startSession(t *testing.T, s *sqlite.Server) rawClient {
	t.Helper()
	f := dial(t, s)
	f.Send(startup())
	if err := f.Flush(); err != nil {
		t.Fatal(err)
	}
	f.readUntil(t, "ReadyForQuery")
	return f
}

// startup returns the packet that starts a session.
func startup() *pgproto3.StartupMessage {
	parameters := map[string]string{"user": "u"}
	return &pgproto3.StartupMessage{ProtocolVersion: pgproto3.ProtocolVersion30, Parameters: parameters}
}

// dial connects and sends nothing.
func dial(t *testing.T, s *sqlite.Server) rawClient {
	t.Helper()
	c, err := net.Dial("tcp", s.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	return rawClient{Frontend: pgproto3.NewFrontend(c, c), Conn: c}
}

// readUntil reads messages up to one with the name last, or to the end of the connection. It returns their names.
func (r rawClient) readUntil(t *testing.T, last string) (names string) {
	t.Helper()
	for {
		m, err := r.Receive()
		if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			return names + "EOF"
		}
		if err != nil {
			return names + err.Error()
		}
		name := fmt.Sprintf("%T", m)[len("*pgproto3."):]
		if e, ok := m.(*pgproto3.ErrorResponse); ok && e.Severity == "FATAL" {
			name = "FATAL " + e.Code
		}
		names += name
		if name == last {
			return names
		}
		names += " "
	}
}
