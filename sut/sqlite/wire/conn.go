package wire

import (
	"bufio"
	"bytes"
	"crypto/subtle"
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

// conn is the connection of a client. One goroutine serves it; other goroutines may call only drain.
type conn struct {
	net      net.Conn
	server   *Server
	in       *bufio.Reader // holds messageBytes: a message is parsed inside the buffer
	out      []byte        // answers that are not sent yet
	accepted time.Time
	limited  bool // a read deadline is set
	replica  bool // this is a replica, not a client; guarded by the server's lock

	session    Session // nil until the start-up packet
	pid        uint32
	secret     [4]byte
	status     byte // transaction status
	lastType   byte // type of the last message
	skipping   bool // after an error, until the next Sync
	statements map[string]*Command
	portals    map[string]*portal
	fields     []pgproto3.FieldDescription // reused

	draining atomic.Bool
}

// The transaction status, as ReadyForQuery reports it.
const (
	idle   = 'I' // no transaction, or an implicit one
	open   = 'T' // after BEGIN
	failed = 'E' // after BEGIN and an error
)

// The limits of a connection.
const (
	messageBytes = 64 << 10         // size of each client's buffer and of the largest message
	flushBytes   = 32 << 10         // unsent answers of this size are sent at once
	maxPackets   = 4                // start-up packets: requests for TLS and GSS, then the start of a session
	writeTimeout = 10 * time.Second // for a client that does not read its answer
)

// The lengths of headers.
const (
	startHeader   = 8 // of a start-up packet: length and code
	messageHeader = 5 // of a message: type and length
)

// The codes of start-up packets that do not start a session.
// https://www.postgresql.org/docs/15/protocol-message-formats.html
const (
	cancelCode = 80877102
	tlsCode    = 80877103
	gssCode    = 80877104
)

// Read implements io.Reader for the buffer in. It runs when the buffer holds no complete message, so it first sends the
// answers to all earlier messages.
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
		// This check must follow SetReadDeadline. drain sets the flag first and then the deadline. In any other order both
		// could be missed, and the drained connection would stay open.
		if c.draining.Load() && c.in.Buffered() == 0 && c.betweenRequests() {
			return 0, fatal(AdminShutdown, "terminating connection due to administrator command")
		}
		n, err := c.net.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if c.limited && !time.Now().Before(until) {
			if c.session == nil {
				return 0, fatal(ProtocolViolation, "no start-up packet within %v", c.server.cfg.HandshakeTimeout)
			}
			return 0, fatal(IdleInTransaction, "terminating connection due to idle-in-transaction timeout")
		}
		c.limited = true // drain interrupted the read inside a transaction: the next round removes its deadline
	}
}

// deadline returns the time until which the client may be silent. Zero = no limit.
func (c *conn) deadline() time.Time {
	switch {
	case c.session == nil:
		return c.accepted.Add(c.server.cfg.HandshakeTimeout)
	case c.session.HoldsResources():
		return time.Now().Add(c.server.cfg.IdleInTransaction)
	}
	return time.Time{}
}

// betweenRequests reports whether the client has no request and no transaction in progress.
func (c *conn) betweenRequests() bool {
	if c.session == nil {
		return true
	}
	return c.status == idle && !c.session.HoldsResources() && (c.lastType == 0 || c.lastType == 'S' || c.lastType == 'Q')
}

// drain ends the connection as soon as its client is between requests.
func (c *conn) drain() {
	c.draining.Store(true)
	_ = c.net.SetReadDeadline(time.Unix(1, 0))
}

func (c *conn) send(m pgproto3.BackendMessage) {
	// Encode fails only for lists that are longer than any catalogue allows.
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
	// A small answer fits into the socket's buffer. A large answer, or one while other clients wait, needs a deadline:
	// otherwise a client that does not read would block them.
	if len(c.out) > flushBytes/8 || c.session != nil && c.session.HoldsResources() {
		if err := c.net.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		defer c.net.SetWriteDeadline(time.Time{})
	}
	_, err := c.net.Write(c.out)
	if cap(c.out) > 2*flushBytes {
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
			c.server.cfg.Log.Warn("closing the connection of a client", "client", c.net.RemoteAddr().String(), "cause", err)
		}
		c.sendError("FATAL", err)
	}
	_ = c.flush()
	if c.session != nil {
		_ = c.session.End(false)
	}
	c.server.remove(c)
	_ = c.net.Close()
}

// peek returns the next message and leaves it in the buffer. The length of the message follows after prefix bytes. The
// message must have minSize bytes or more.
func (c *conn) peek(prefix, minSize int) ([]byte, error) {
	b, err := c.in.Peek(prefix + 4)
	if err != nil {
		return nil, err
	}
	size := int(binary.BigEndian.Uint32(b[prefix:])) + prefix
	switch {
	case size < minSize:
		return nil, fatal(ProtocolViolation, "invalid message")
	case size > c.in.Size():
		return nil, fatal(LimitExceeded, "message exceeds the limit of %d bytes", c.in.Size())
	}
	return c.in.Peek(size)
}

// start answers start-up packets until one of them starts a session. Any other outcome is an error.
func (c *conn) start() error {
	for range maxPackets {
		packet, err := c.peek(0, startHeader)
		if err != nil {
			return err
		}
		code, body := binary.BigEndian.Uint32(packet[4:]), packet[startHeader:]
		if c.server.cfg.Replica != nil && code == c.server.cfg.ReplicaCode {
			if !equal(body, c.server.cfg.Password) {
				return fatal(InvalidPassword, "replication needs the secret of the system")
			}
			_, _ = c.in.Discard(len(packet))
			rest, _ := c.in.Peek(c.in.Buffered())
			c.server.markReplica(c)
			c.server.cfg.Replica(c.net, bufio.NewReader(io.MultiReader(bytes.NewReader(rest), c.net)))
			return io.EOF
		}
		switch code {
		case tlsCode, gssCode:
			c.out = append(c.out, 'N')
			_, _ = c.in.Discard(len(packet))
			continue
		case cancelCode:
			if len(body) == 8 {
				c.server.cancel(binary.BigEndian.Uint32(body), body[4:])
			}
			return io.EOF
		}
		if err := c.checkStart(code, body); err != nil {
			return err
		}
		_, _ = c.in.Discard(len(packet))
		if err := c.authenticate(); err != nil {
			return err
		}
		return c.startSession()
	}
	return fatal(ProtocolViolation, "too many start-up packets")
}

// authenticate asks for the password, if clients need one. It is sent as plain text, because the node listens only on a
// loopback address.
func (c *conn) authenticate() error {
	if c.server.cfg.Password == "" {
		return nil
	}
	c.send(&pgproto3.AuthenticationCleartextPassword{})
	message, err := c.peek(1, messageHeader)
	if err != nil {
		return err
	}
	password, ended := bytes.CutSuffix(message[messageHeader:], []byte{0})
	if message[0] != 'p' || !ended || !equal(password, c.server.cfg.Password) {
		return fatal(InvalidPassword, "password authentication failed")
	}
	_, _ = c.in.Discard(len(message))
	return nil
}

// equal compares texts in a time that says nothing about the second one.
func equal(text []byte, secret string) bool {
	return subtle.ConstantTimeCompare(text, []byte(secret)) == 1
}

// checkStart answers the packet that starts a session. It accepts any user and any database name: there is one database
// with one password.
func (c *conn) checkStart(version uint32, body []byte) error {
	if version>>16 != pgproto3.ProtocolVersion30>>16 {
		return fatal(FeatureNotSupported, "unsupported protocol %d.%d: use 3.0", version>>16, version&0xffff)
	}
	var unknown []string // protocol options
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
	return nil
}

// startSession starts a session.
func (c *conn) startSession() error {
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
