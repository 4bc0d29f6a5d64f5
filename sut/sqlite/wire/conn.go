package wire

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

// conn is a connection of a client. One goroutine serves it; drain is called by others.
type conn struct {
	net     net.Conn
	server  *Server
	in      *bufio.Reader // of the whole limit: a message is taken as it lies there
	out     []byte        // the answer, not yet sent
	since   time.Time     // of its acceptance
	limited bool          // a read deadline is set
	replica bool          // it is one, not a client; guarded by the server's lock

	session    Session // nil until the client has introduced itself
	pid        uint32
	secret     [4]byte
	status     byte
	last       byte // type of the last message
	skipping   bool // until the next Sync, after an error
	statements map[string]*Command
	portals    map[string]*portal
	fields     []pgproto3.FieldDescription // reused

	draining atomic.Bool
}

// The transaction status, as ReadyForQuery reports it.
const (
	idle   = 'I' // between transactions, or in an implicit one
	open   = 'T' // after BEGIN
	failed = 'E' // after BEGIN and an error
)

// The bounds of a connection.
const (
	messageBytes = 64 << 10         // size of each client's buffer and of the largest message
	flushAt      = 32 << 10         // an answer is sent when it has grown this large
	maxPackets   = 4                // TLS and GSS may be asked for, each once, and then comes the start
	writeTimeout = 10 * time.Second // for a client that does not read its answer
)

// Lengths of headers: a start-up packet has no type.
const (
	startHeader   = 8 // length and code
	messageHeader = 5 // type and length
)

// What a start-up packet may ask for instead of a session.
// https://www.postgresql.org/docs/15/protocol-message-formats.html
const (
	cancelCode = 80877102
	tlsCode    = 80877103
	gssCode    = 80877104
)

// Read fills p. The buffer is empty or holds a part of a message: all earlier messages have been dealt with, so this
// is when their answers must go out.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.flush(); err != nil {
		return 0, err
	}
	for {
		until := c.deadline()
		if !until.IsZero() || c.limited {
			c.limited = !until.IsZero()
			if err := c.net.SetReadDeadline(until); err != nil {
				return 0, err
			}
		}
		// Asked after the deadline was set: drain does the two in the other order, so one of them is seen.
		if c.draining.Load() && c.in.Buffered() == 0 && c.quiet() {
			return 0, fatal(AdminShutdown, "terminating connection due to administrator command")
		}
		n, err := c.net.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if c.limited && !time.Now().Before(until) {
			if c.session == nil {
				return 0, fatal(ProtocolViolation, "no start-up packet in time")
			}
			return 0, fatal(IdleInTransaction, "terminating connection due to idle-in-transaction timeout")
		}
		c.limited = true // drain woke us up in the middle of something: its deadline must go
	}
}

// deadline is until when the client may say nothing; zero = for ever.
func (c *conn) deadline() time.Time {
	switch {
	case c.session == nil:
		return c.since.Add(c.server.cfg.HandshakeTimeout)
	case c.session.HoldsResources():
		return time.Now().Add(c.server.cfg.IdleInTransaction)
	}
	return time.Time{}
}

// quiet reports whether the client is between two requests and transactions.
func (c *conn) quiet() bool {
	if c.session == nil {
		return true
	}
	return c.status == idle && !c.session.HoldsResources() && (c.last == 0 || c.last == 'S' || c.last == 'Q')
}

// drain ends the connection as soon as its client is between transactions.
func (c *conn) drain() {
	c.draining.Store(true)
	_ = c.net.SetReadDeadline(time.Unix(1, 0))
}

func (c *conn) send(m pgproto3.BackendMessage) {
	// An error is one of a list that is too long, which no catalogue has.
	c.out, _ = m.Encode(c.out)
}

func (c *conn) sendError(severity string, err error) {
	c.send(&pgproto3.ErrorResponse{
		Severity: severity, SeverityUnlocalized: severity, Code: State(err), Message: err.Error(),
	})
}

func (c *conn) flush() error {
	if len(c.out) == 0 {
		return nil
	}
	// What is small fits into the socket's buffer. Where it might not, or where others are waiting, a client that
	// does not read must not hold us.
	if len(c.out) > flushAt/8 || c.session != nil && c.session.HoldsResources() {
		if err := c.net.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		defer c.net.SetWriteDeadline(time.Time{})
	}
	_, err := c.net.Write(c.out)
	if cap(c.out) > 2*flushAt {
		c.out = nil
	}
	c.out = c.out[:0]
	return err
}

func (c *conn) serve() {
	err := c.start()
	for err == nil {
		err = c.next()
	}
	if e := (*Error)(nil); errors.As(err, &e) && e.fatal {
		if e.State != AdminShutdown {
			c.server.cfg.Log.Warn("client refused", "client", c.net.RemoteAddr().String(), "cause", err)
		}
		c.sendError("FATAL", err)
	}
	_ = c.flush()
	if c.session != nil {
		_ = c.session.End(false)
	}
	c.server.depart(c)
	_ = c.net.Close()
}

// peek returns the next message and leaves it in the buffer. Its length stands behind prefix bytes.
func (c *conn) peek(prefix, least int) ([]byte, error) {
	b, err := c.in.Peek(prefix + 4)
	if err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(b[prefix:])) + prefix
	switch {
	case size < least:
		return nil, fatal(ProtocolViolation, "invalid message")
	case size > c.in.Size():
		return nil, fatal(LimitExceeded, "message is larger than the %d bytes that this node takes", c.in.Size())
	}
	return c.in.Peek(size)
}

// start answers start-up packets until one of them starts a session.
func (c *conn) start() error {
	for range maxPackets {
		packet, err := c.peek(0, startHeader)
		if err != nil {
			return err
		}
		code, body := binary.BigEndian.Uint32(packet[4:]), packet[startHeader:]
		if c.server.cfg.Replica != nil && code == c.server.cfg.ReplicaCode && len(body) == 0 {
			_, _ = c.in.Discard(startHeader)
			rest, _ := c.in.Peek(c.in.Buffered())
			c.server.isReplica(c)
			c.server.cfg.Replica(c.net, bufio.NewReader(io.MultiReader(bytes.NewReader(rest), c.net)))
			return io.EOF
		}
		switch code {
		case tlsCode, gssCode:
			c.out = append(c.out, 'N')
		case cancelCode:
			if len(body) == 8 {
				c.server.cancel(binary.BigEndian.Uint32(body), body[4:])
			}
			return io.EOF
		default:
			err = c.greet(code, body)
		}
		_, _ = c.in.Discard(len(packet))
		if err != nil || c.session != nil {
			return err
		}
	}
	return fatal(ProtocolViolation, "invalid message")
}

// greet starts a session. Any name will do: there is one database, and it has no passwords.
func (c *conn) greet(version uint32, body []byte) error {
	if version>>16 != pgproto3.ProtocolVersion30>>16 {
		return fatal(FeatureNotSupported, "unsupported protocol %d.%d, supported is 3.0", version>>16, version&0xffff)
	}
	var unknown []string // options of the protocol
	for {
		name, rest, found := bytes.Cut(body, []byte{0})
		if found && len(name) == 0 {
			break
		}
		if _, body, found = bytes.Cut(rest, []byte{0}); !found {
			return io.EOF
		}
		if strings.HasPrefix(string(name), "_pq_.") {
			unknown = append(unknown, string(name))
		}
	}
	if version != pgproto3.ProtocolVersion30 || len(unknown) > 0 {
		const newest = pgproto3.ProtocolVersion30
		c.send(&pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: newest, UnrecognizedOptions: unknown})
	}
	if !c.server.admit(c) {
		return fatal(TooManyConnections, "sorry, too many clients already")
	}
	c.send(&pgproto3.AuthenticationOk{})
	c.send(&pgproto3.BackendKeyData{ProcessID: c.pid, SecretKey: c.secret[:]})
	for _, p := range [][2]string{
		{"server_version", serverVersion},
		{"server_encoding", "UTF8"},
		{"client_encoding", "UTF8"},
		{"is_superuser", "off"},
		{"session_authorization", ""},
		{"standard_conforming_strings", "on"},
		{"integer_datetimes", "on"},
		{"DateStyle", "ISO, MDY"},
		{"TimeZone", "UTC"},
	} {
		c.send(&pgproto3.ParameterStatus{Name: p[0], Value: p[1]})
	}
	c.ready()
	return nil
}
