package wire

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strconv"

	"github.com/jackc/pgx/v5/pgproto3"
)

// portal is a statement with its parameters.
type portal struct {
	command *Command
	bind    pgproto3.Bind
	ran     bool
	rest    []byte // encoded rows that the client has not fetched yet
	tag     string
}

// next answers the next message. An error ends the connection.
func (c *conn) next() error {
	message, err := c.peek(1, messageHeader)
	if err != nil {
		return err
	}
	kind := message[0]
	c.lastType = kind
	defer func() { _, _ = c.in.Discard(len(message)) }()
	if c.skipping && kind != 'S' && kind != 'X' {
		return nil
	}
	err = c.answer(kind, message[messageHeader:])
	if e := (*Error)(nil); err == io.EOF || errors.As(err, &e) && e.fatal {
		return err
	}
	if err != nil {
		c.fail()
		c.sendError("ERROR", err)
		c.skipping = kind != 'Q' && kind != 'S'
	}
	if kind == 'Q' || kind == 'S' {
		c.ready()
	}
	if len(c.out) >= flushBytes {
		return c.flush()
	}
	return nil
}

// answer answers one message. The client gets the error, unless it is fatal or io.EOF.
// https://www.postgresql.org/docs/15/protocol-flow.html
func (c *conn) answer(kind byte, body []byte) error {
	switch kind {
	case 'Q':
		var m pgproto3.Query
		if m.Decode(body) == nil {
			return c.query(m.String)
		}
	case 'P':
		var m pgproto3.Parse
		if m.Decode(body) == nil && len(body) == len(m.Name)+1+len(m.Query)+1+2+4*len(m.ParameterOIDs) {
			return c.parse(m.Name, m.Query)
		}
	case 'B':
		p := &portal{}
		// The clone is needed because the portal outlives the message.
		if p.bind.Decode(bytes.Clone(body)) == nil && len(body) == bindLength(&p.bind) {
			return c.bind(p)
		}
	case 'D':
		var m pgproto3.Describe
		if m.Decode(body) == nil && (m.ObjectType == 'S' || m.ObjectType == 'P') {
			return c.describe(m.ObjectType, m.Name)
		}
	case 'E':
		var m pgproto3.Execute
		if m.Decode(body) == nil && len(body) == len(m.Portal)+1+4 {
			return c.execute(m.Portal, m.MaxRows)
		}
	case 'C':
		var m pgproto3.Close
		if m.Decode(body) == nil && (m.ObjectType == 'S' || m.ObjectType == 'P') {
			c.close(m.ObjectType, m.Name)
			c.send(&pgproto3.CloseComplete{})
			return nil
		}
	case 'S', 'H', 'X':
		switch {
		case len(body) > 0:
		case kind == 'X':
			return io.EOF
		case kind == 'S':
			return c.sync()
		default:
			return nil // Read sends all answers when the buffer holds no more messages
		}
	case 'd', 'c', 'f': // of a COPY that has failed: PostgreSQL ignores them, too
		return nil
	default:
		return fatal(ConnectionDoesNotExist, "unknown message type %q", kind)
	}
	return fatal(ProtocolViolation, "invalid message")
}

// bindLength returns the expected length of a Bind without its header. pgproto3 does not report extra bytes at the end.
func bindLength(m *pgproto3.Bind) int {
	n := len(m.DestinationPortal) + 1 + len(m.PreparedStatement) + 1
	n += 2 + 2*len(m.ParameterFormatCodes) + 2 + 2 + 2*len(m.ResultFormatCodes)
	for _, p := range m.Parameters {
		n += 4 + len(p)
	}
	return n
}

// query runs a simple query. Outside BEGIN and COMMIT the query is one transaction: it is committed before the client
// gets the answer.
func (c *conn) query(text string) error {
	command, err := c.server.cfg.Catalogue.parse(text)
	if err != nil {
		return err
	}
	if len(command.fields) > 0 {
		c.send(&pgproto3.RowDescription{Fields: command.fields})
	}
	mark := len(c.out)
	tag, err := c.run(command, &pgproto3.Bind{})
	if err == nil && c.status == idle {
		err = c.session.End(true)
	}
	if err != nil {
		c.out = c.out[:mark]
		return err
	}
	c.complete(tag)
	return nil
}

func (c *conn) parse(name, text string) error {
	command, err := c.server.cfg.Catalogue.parse(text)
	if err != nil {
		return err
	}
	c.close('S', name)
	c.statements[name] = command
	c.send(&pgproto3.ParseComplete{})
	return nil
}

func (c *conn) bind(p *portal) error {
	if p.command = c.statements[p.bind.PreparedStatement]; p.command == nil {
		return Errorf(UndefinedStatement, "prepared statement %q does not exist", p.bind.PreparedStatement)
	}
	formats := p.bind.ResultFormatCodes
	if n := len(p.command.Columns); len(formats) > 1 && len(formats) != n {
		return Errorf(ProtocolViolation, "bind message has %d result formats but query has %d columns", len(formats), n)
	}
	for _, f := range formats {
		if f != pgproto3.TextFormat && f != pgproto3.BinaryFormat {
			return Errorf(InvalidParameterValue, "unsupported format code: %d", f)
		}
	}
	c.portals[p.bind.DestinationPortal] = p
	c.send(&pgproto3.BindComplete{})
	return nil
}

func (c *conn) describe(kind byte, name string) error {
	var formats []int16
	command := c.statements[name]
	switch p := c.portals[name]; {
	case kind == 'P' && p == nil:
		return Errorf(InvalidCursorName, "portal %q does not exist", name)
	case kind == 'P':
		command, formats = p.command, p.bind.ResultFormatCodes
	case command == nil:
		return Errorf(UndefinedStatement, "prepared statement %q does not exist", name)
	default:
		c.send(&pgproto3.ParameterDescription{ParameterOIDs: command.oids})
	}
	if len(command.fields) == 0 {
		c.send(&pgproto3.NoData{})
		return nil
	}
	c.fields = append(c.fields[:0], command.fields...)
	for i := range c.fields {
		c.fields[i].Format = Format(formats, i)
	}
	c.send(&pgproto3.RowDescription{Fields: c.fields})
	return nil
}

// Format returns the format of parameter or column i. If formats is empty, all are text. If it has one element, the
// element applies to all.
func Format(formats []int16, i int) int16 {
	switch {
	case len(formats) == 1:
		return formats[0]
	case i < len(formats):
		return formats[i]
	}
	return pgproto3.TextFormat
}

// execute runs a portal, or sends further rows of a portal that has run. It sends at most limit rows; 0 = all.
func (c *conn) execute(name string, limit uint32) error {
	p := c.portals[name]
	if p == nil {
		return Errorf(InvalidCursorName, "portal %q does not exist", name)
	}
	if p.ran && len(p.rest) == 0 {
		return Errorf(WrongState, "portal %q cannot be run", name)
	}
	if !p.ran {
		p.ran = true
		mark := len(c.out)
		var err error
		if p.tag, err = c.run(p.command, &p.bind); err != nil {
			c.out = c.out[:mark]
			return err
		}
		if limit > 0 {
			p.rest = bytes.Clone(c.out[mark:])
			c.out = c.out[:mark]
		}
	}
	for n := uint32(0); len(p.rest) > 0 && (n < limit || limit == 0); n++ {
		size := 1 + binary.BigEndian.Uint32(p.rest[1:])
		c.out = append(c.out, p.rest[:size]...)
		p.rest = p.rest[size:]
	}
	if len(p.rest) > 0 {
		c.send(&pgproto3.PortalSuspended{})
		return nil
	}
	c.complete(p.tag)
	return nil
}

// complete ends a result. Only an empty statement has no tag.
func (c *conn) complete(tag string) {
	if tag == "" {
		c.send(&pgproto3.EmptyQueryResponse{})
		return
	}
	c.send(&pgproto3.CommandComplete{CommandTag: []byte(tag)})
}

// close closes a portal ('P'), or a prepared statement ('S') and its portals.
func (c *conn) close(kind byte, name string) {
	if kind == 'P' {
		delete(c.portals, name)
		return
	}
	for portal, p := range c.portals {
		if p.bind.PreparedStatement == name {
			delete(c.portals, portal)
		}
	}
	delete(c.statements, name)
}

// run runs a statement, appends its rows to the answers and returns its command tag.
func (c *conn) run(command *Command, b *pgproto3.Bind) (tag string, err error) {
	if c.status == failed && command.tag != commit && command.tag != rollback && command.tag != "" {
		const text = "current transaction is aborted, commands ignored until end of transaction block"
		return "", Errorf(FailedTransaction, text)
	}
	if command.act != nil {
		tag := command.tag
		if tag == commit && c.status == failed {
			tag = rollback // a failed transaction can only be rolled back
		}
		if len(command.fields) > 0 {
			c.send(&pgproto3.DataRow{Values: [][]byte{[]byte(command.value)}})
		}
		return tag, command.act(c)
	}
	rows := 0
	if c.out, rows, err = c.session.Run(c.out, command, b); err != nil || !command.counts {
		return command.tag, err
	}
	return command.tag + " " + strconv.Itoa(rows), nil
}

// begin starts a transaction that may span round trips. Inside a transaction it has no effect; PostgreSQL warns then.
func (c *conn) begin(readOnly bool) error {
	if c.status == idle {
		if err := c.session.Begin(readOnly); err != nil {
			return err
		}
	}
	c.status = open
	return nil
}

// end ends a transaction. A failed transaction was rolled back already, so there it only changes the status.
func (c *conn) end(commit bool) error {
	c.status = idle
	return c.session.End(commit)
}

// fail rolls back the transaction at once. Otherwise other writers would wait until the client has read the error.
func (c *conn) fail() {
	if c.status == open {
		c.status = failed
	}
	_ = c.session.End(false)
}

// sync commits the implicit transaction: the statements since the last Sync outside BEGIN and COMMIT.
func (c *conn) sync() error {
	if c.skipping || c.status != idle {
		c.skipping = false
		return nil
	}
	return c.session.End(true)
}

// ready tells the client that the next request may follow. A portal does not outlive its transaction.
func (c *conn) ready() {
	if c.status == idle {
		clear(c.portals)
	}
	c.send(&pgproto3.ReadyForQuery{TxStatus: c.status})
}
