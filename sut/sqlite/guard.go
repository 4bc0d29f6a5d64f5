package sqlite

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jeroenrinzema/psql-wire/codes"

	"github.com/stagebench/stagebench/sut/sqlite/replog"
)

// guard is a client's connection as psql-wire sees it. It lets only whole and
// well-formed messages through, since some malformed ones would make psql-wire
// panic, lose the message boundary or grow its stack; and it gathers the
// answer, for which psql-wire makes a system call per message, until there is
// nothing left to read.
//
// One goroutine reads and writes; drain is called by another.
type guard struct {
	net.Conn
	server  *Server
	session *session // nil until the client has introduced itself

	limit   int    // largest message
	rest    []byte // read, but not yet complete
	out     []byte // written, but not yet sent
	started bool   // past the start-up packets
	packets int    // how many start-up packets there were
	last    byte   // type of the last message let through
	limited bool   // a read deadline is set
	replica bool   // it is one, not a client; guarded by the server's lock
	born    time.Time

	draining atomic.Bool
	closing  sync.Once
}

// The bounds of a connection.
const (
	flushAt      = 32 << 10         // an answer is sent when it has grown this large
	maxPackets   = 4                // TLS and GSS may be asked for, each once, and then comes the start
	writeTimeout = 10 * time.Second // for a client that does not read its answer
	keptRest     = 16 << 10         // a buffer larger than this is not kept
)

// Why a client is refused.
var (
	errProtocol = errors.New("invalid message")
	errTooLarge = errors.New("message too large")
	errSilent   = errors.New("no start-up packet in time")
	errReplica  = errors.New("a replica, not a client") // is no reason to refuse it
)

// idleInTransaction is PostgreSQL's idle_in_transaction_session_timeout.
const idleInTransaction codes.Code = "25P03"

// peer is the address that psql-wire hands on in its contexts: the way from
// there back to the connection.
type peer struct {
	net.Addr
	guard *guard
}

// RemoteAddr returns the client's address.
func (g *guard) RemoteAddr() net.Addr { return peer{Addr: g.Conn.RemoteAddr(), guard: g} }

// Read fills p with whole messages; p is psql-wire's whole buffer, of limit
// bytes. It is called when all earlier messages have been dealt with, so this
// is when their answers must be on their way.
func (g *guard) Read(p []byte) (int, error) {
	n := copy(p, g.rest)
	g.rest = g.rest[:0]
	for {
		whole, err := g.scan(p[:n])
		if errors.Is(err, errReplica) {
			g.server.replication.serve(g, bytes.Clone(p[2*untypedHeader:n]))
			return 0, io.EOF
		}
		if err != nil {
			return 0, g.refuse(err)
		}
		if whole > 0 {
			if n-whole > keptRest || cap(g.rest) > keptRest {
				g.rest = nil
			}
			g.rest = append(g.rest, p[whole:n]...)
			return whole, nil
		}
		if err := g.flush(); err != nil {
			return 0, err
		}
		more, err := g.fill(p[n:], n > 0)
		if err != nil {
			return 0, err
		}
		n += more
	}
}

// fill waits for more bytes, for as long as the client may make us wait.
func (g *guard) fill(p []byte, partial bool) (int, error) {
	if len(p) == 0 {
		return 0, g.refuse(errTooLarge)
	}
	for {
		until := g.deadline()
		if !until.IsZero() || g.limited {
			g.limited = !until.IsZero()
			if err := g.Conn.SetReadDeadline(until); err != nil {
				return 0, err
			}
		}
		// Asked after the deadline was set: drain raises the flag and then sets
		// a deadline in the past, so one of the two is seen.
		if g.draining.Load() && !partial && g.quiet() {
			return 0, g.farewell(codes.AdminShutdown, "terminating connection due to administrator command")
		}
		n, err := g.Conn.Read(p)
		if n > 0 || !errors.Is(err, os.ErrDeadlineExceeded) {
			return n, err
		}
		if g.limited && !time.Now().Before(until) {
			if g.session == nil {
				return 0, g.refuse(errSilent)
			}
			return 0, g.farewell(idleInTransaction, "terminating connection due to idle-in-transaction timeout")
		}
		g.limited = true // drain woke us up in the middle of something: its deadline must go
	}
}

// deadline is until when the client may say nothing; zero = for ever.
func (g *guard) deadline() time.Time {
	switch {
	case g.session == nil:
		return g.born.Add(g.server.cfg.HandshakeTimeout)
	case g.session.holding():
		return time.Now().Add(g.server.cfg.IdleInTransaction)
	}
	return time.Time{}
}

// quiet reports whether the client is between two requests and transactions.
func (g *guard) quiet() bool {
	if g.session == nil {
		return true
	}
	return g.session.status == idle && !g.session.holding() && (g.last == 0 || g.last == 'S' || g.last == 'Q')
}

// scan returns the length of the whole messages at the beginning of b.
// https://www.postgresql.org/docs/15/protocol-message-formats.html
func (g *guard) scan(b []byte) (whole int, err error) {
	if !g.started {
		return g.scanStart(b)
	}
	for len(b)-whole >= typedHeader {
		message := b[whole:]
		size := int(binary.BigEndian.Uint32(message[1:])) + 1 // of all but the type
		switch {
		case size < typedHeader:
			return 0, errProtocol
		case size > g.limit:
			return 0, errTooLarge
		case size > len(message):
			return whole, nil
		case !wellFormed(message[0], message[typedHeader:size]):
			return 0, errProtocol
		}
		g.last = message[0]
		whole += size
	}
	return whole, nil
}

// scanStart lets one start-up packet through at a time: psql-wire makes a new
// reader for the next one and would lose what the old one had read ahead.
func (g *guard) scanStart(b []byte) (int, error) {
	if len(b) < untypedHeader {
		return 0, nil
	}
	size := int(binary.BigEndian.Uint32(b))
	switch {
	case size < 2*untypedHeader:
		return 0, errProtocol
	case size > g.limit:
		return 0, errTooLarge
	case size > len(b):
		return 0, nil
	}
	if g.server.replication != nil && size == 2*untypedHeader && binary.BigEndian.Uint32(b[untypedHeader:]) == replog.StartCode {
		return 0, errReplica
	}
	if g.packets++; g.packets > maxPackets {
		return 0, errProtocol
	}
	// Codes of this major version ask for something; all others start.
	const request = 1234
	g.started = binary.BigEndian.Uint16(b[untypedHeader:]) != request
	return size, nil
}

// Write gathers the answer.
func (g *guard) Write(p []byte) (int, error) {
	g.out = append(g.out, p...)
	if len(g.out) >= flushAt {
		if err := g.flush(); err != nil {
			return 0, err
		}
	}
	return len(p), nil
}

// flush sends what was gathered.
func (g *guard) flush() error {
	if len(g.out) == 0 {
		return nil
	}
	// What is small fits into the socket's buffer. Where it might not, or where
	// others are waiting, a client that does not read must not hold us.
	if len(g.out) > flushAt/8 || g.session != nil && g.session.holding() {
		if err := g.Conn.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return err
		}
		defer g.Conn.SetWriteDeadline(time.Time{})
	}
	_, err := g.Conn.Write(g.out)
	if cap(g.out) > 2*flushAt {
		g.out = nil
	}
	g.out = g.out[:0]
	return err
}

// farewell tells the client why its connection ends, and ends it.
func (g *guard) farewell(code codes.Code, text string) error {
	message := pgproto3.ErrorResponse{Severity: "FATAL", SeverityUnlocalized: "FATAL", Code: string(code), Message: text}
	var err error
	if g.out, err = message.Encode(g.out); err != nil {
		return err
	}
	if err := g.flush(); err != nil {
		return err
	}
	return io.EOF
}

// refuse ends the connection of a client that does not speak the protocol.
func (g *guard) refuse(cause error) error {
	g.server.cfg.Log.Warn("client refused", "client", g.Conn.RemoteAddr().String(), "cause", cause)
	code := codes.ProtocolViolation
	if errors.Is(cause, errTooLarge) {
		return g.farewell(codes.ProgramLimitExceeded, fmt.Sprintf("message is larger than the %d bytes that this node takes", g.limit))
	}
	return g.farewell(code, cause.Error())
}

// drain ends the connection as soon as its client is between transactions.
func (g *guard) drain() {
	g.draining.Store(true)
	_ = g.Conn.SetReadDeadline(time.Unix(1, 0))
}

// Close sends what is left, takes an open transaction back and closes the
// connection.
func (g *guard) Close() (err error) {
	g.closing.Do(func() {
		_ = g.flush()
		g.server.depart(g)
		err = g.Conn.Close()
	})
	return err
}
