package sqlite

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"

	wire "github.com/jeroenrinzema/psql-wire"
	"github.com/jeroenrinzema/psql-wire/codes"
	"github.com/jeroenrinzema/psql-wire/pkg/buffer"
)

// statements gives psql-wire the prepared statements of a client, which are in
// its session.
type statements struct{ missing *statement }

// Set keeps the statement that the client has just parsed: what psql-wire
// hands over is that one, in a form without a way in.
func (statements) Set(ctx context.Context, name string, _ *wire.PreparedStatement) error {
	s := sessionOf(ctx)
	s.names[name] = s.asked
	return nil
}

// Get returns the prepared statement of that name. Where there is none it
// returns one that fails: psql-wire would end the connection without a word.
func (c statements) Get(ctx context.Context, name string) (*wire.Statement, error) {
	s := sessionOf(ctx)
	if s.asked = s.names[name]; s.asked == nil {
		s.asked = c.missing
	}
	return s.asked.described, nil
}

// Delete forgets a prepared statement.
func (statements) Delete(ctx context.Context, name string) error {
	delete(sessionOf(ctx).names, name)
	return nil
}

// Close has nothing to do: the session ends with its connection.
func (statements) Close() {}

// portals is the portals of one client: statements with their parameters.
type portals struct{ byName map[string]*portal }

type portal struct {
	statement *statement
	described *wire.Statement
	params    []wire.Parameter
	formats   []wire.FormatCode
	ran       bool
	rest      []byte // rows that the client has not fetched yet
	tag       string
}

// Bind makes a portal of the statement that Get returned.
func (c *portals) Bind(ctx context.Context, name string, st *wire.Statement, params []wire.Parameter, formats []wire.FormatCode) error {
	c.byName[name] = &portal{statement: sessionOf(ctx).asked, described: st, params: params, formats: formats}
	return nil
}

// Get returns the portal of that name, for psql-wire to describe it.
func (c *portals) Get(ctx context.Context, name string) (*wire.Portal, error) {
	p := c.byName[name]
	if p == nil {
		return nil, nil
	}
	var theirs wire.DefaultPortalCache
	if err := theirs.Bind(ctx, name, p.described, p.params, p.formats); err != nil {
		return nil, err
	}
	return theirs.Get(ctx, name)
}

// Execute runs a portal, or goes on with one that was left before its end.
func (c *portals) Execute(ctx context.Context, name string, limit wire.Limit, _ *buffer.Reader, _ *buffer.Writer) error {
	p := c.byName[name]
	if p == nil {
		return fault(codes.InvalidCursorName, fmt.Sprintf("portal %q does not exist", name))
	}
	if p.ran && len(p.rest) == 0 {
		return fault(codes.ObjectNotInPrerequisiteState, fmt.Sprintf("portal %q cannot be run", name))
	}
	s := sessionOf(ctx)
	g := s.guard
	if !p.ran {
		p.ran = true
		mark := len(g.out)
		var err error
		if p.tag, err = s.run(p.statement, p.params, p.formats, false); err != nil {
			return err
		}
		if limit != wire.NoLimit {
			p.rest = bytes.Clone(g.out[mark:])
			g.out = g.out[:mark]
		}
	}
	for n := wire.Limit(0); len(p.rest) > 0 && (n < limit || limit == wire.NoLimit); n++ {
		size := 1 + binary.BigEndian.Uint32(p.rest[1:])
		g.out = append(g.out, p.rest[:size]...)
		p.rest = p.rest[size:]
	}
	if len(p.rest) > 0 {
		_, err := g.Write([]byte{'s', 0, 0, 0, 4}) // PortalSuspended
		return err
	}
	_, err := g.Write(completion(p.tag)) // flushes what has grown large
	return err
}

// Delete closes a portal.
func (c *portals) Delete(_ context.Context, name string) error {
	delete(c.byName, name)
	return nil
}

// DeleteByStatement closes the portals of a statement.
func (c *portals) DeleteByStatement(_ context.Context, st *wire.Statement) error {
	for name, p := range c.byName {
		if p.described == st {
			delete(c.byName, name)
		}
	}
	return nil
}

// Close closes all portals.
func (c *portals) Close() { clear(c.byName) }
