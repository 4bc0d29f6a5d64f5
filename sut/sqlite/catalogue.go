package sqlite

import (
	"context"
	"errors"
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"
	wire "github.com/jeroenrinzema/psql-wire"
	"github.com/jeroenrinzema/psql-wire/codes"
)

// Type is the SQL type of a parameter or of a result column.
type Type string

// The types that a catalogue may use.
const (
	BigInt Type = "bigint" // 64 bits
	Int    Type = "int"    // 32 bits
	Text   Type = "text"   // UTF-8 without NUL
)

// oid is the type's number in PostgreSQL, 0 for an unknown type.
func (t Type) oid() uint32 {
	switch t {
	case BigInt:
		return pgtype.Int8OID
	case Int:
		return pgtype.Int4OID
	case Text:
		return pgtype.TextOID
	}
	return 0
}

// size is the type's width in bytes as PostgreSQL declares it.
func (t Type) size() int16 {
	switch t {
	case BigInt:
		return 8
	case Int:
		return 4
	}
	return -1 // variable
}

// Column is one column of a result.
type Column struct {
	Name string
	Type Type
}

// Statement is one statement of the catalogue. SQLite gives no types for
// parameters and expressions, so they are declared here.
type Statement struct {
	// SQL is the text that clients send. Parameters are $1, $2 ... in the order
	// of their first appearance.
	SQL string
	// Params are the types of $1, $2 ...
	Params []Type
	// Columns describe the rows that come back; nil if none do.
	Columns []Column
	// Local is what SQLite runs in place of SQL; "" = SQL itself.
	Local string
}

// kind is how a statement is run.
type kind int

const (
	read    kind = iota // on a read-only connection, unless a transaction is open
	write               // in the line of writers
	control             // begins or ends a transaction, or is answered without SQLite
)

// statement is a Statement made ready: what is the same for all clients is
// made once.
type statement struct {
	Statement
	kind    kind
	index   int    // of what SQLite compiled of it, in every connection
	command string // its command tag, SELECT or INSERT 0 for example ...
	counts  bool   // ... to which the number of rows is added

	act   func(*session) error // of a control statement
	value string               // of its one row, if it has a column

	parsed    wire.PreparedStatements // what psql-wire gets for the text
	described *wire.Statement         // and what it describes to clients
}

// ready makes the forms of a statement that psql-wire asks for.
func (s *statement) ready() *statement {
	oids := make([]uint32, len(s.Params))
	for i, t := range s.Params {
		oids[i] = t.oid()
	}
	columns := make(wire.Columns, len(s.Columns))
	for i, col := range s.Columns {
		columns[i] = wire.Column{Name: col.Name, Oid: col.Type.oid(), Width: col.Type.size()}
	}
	made := wire.NewStatement(s.simply, wire.WithParameters(oids), wire.WithColumns(columns))
	s.parsed = wire.Prepared(made)
	// Only psql-wire's own cache can make one of these; it never fails.
	var cache wire.DefaultStatementCache
	_ = cache.Set(context.Background(), "", made)
	s.described, _ = cache.Get(context.Background(), "")
	return s
}

// simply runs the statement for a simple query, in text format.
func (s *statement) simply(ctx context.Context, w wire.DataWriter, _ []wire.Parameter) error {
	n := sessionOf(ctx)
	tag, err := n.run(s, nil, nil, true)
	if err != nil {
		return err
	}
	if tag == "" {
		_, err := n.guard.Write(completion(tag))
		return errors.Join(err, w.Empty())
	}
	return w.Complete(tag)
}

// catalogue holds every statement by its exact text.
type catalogue struct {
	bySQL   map[string]*statement
	size    int        // how many of them SQLite compiles
	missing *statement // stands for a prepared statement that does not exist
}

func newCatalogue(statements []Statement) (*catalogue, error) {
	c := &catalogue{bySQL: map[string]*statement{}}
	c.missing = controlling("", func(*session) error {
		return fault(codes.UndefinedPreparedStatement, "prepared statement does not exist")
	})
	for i, declared := range statements {
		if strings.TrimSpace(declared.SQL) == "" {
			return nil, fmt.Errorf("statement %d of the catalogue is empty", i)
		}
		if _, twice := c.bySQL[declared.SQL]; twice {
			return nil, fmt.Errorf("statement %q is in the catalogue twice", declared.SQL)
		}
		for _, t := range declared.Params {
			if t.oid() == 0 {
				return nil, fmt.Errorf("statement %q: unknown type %q", declared.SQL, t)
			}
		}
		for _, col := range declared.Columns {
			if col.Type.oid() == 0 {
				return nil, fmt.Errorf("statement %q: column %s: unknown type %q", declared.SQL, col.Name, col.Type)
			}
		}
		c.add(declared)
	}
	// What people and probes ask to see whether anybody is there.
	if probe := "select 1"; c.bySQL[probe] == nil {
		c.add(Statement{SQL: probe, Columns: []Column{{Name: "?column?", Type: Int}}})
	}
	return c, nil
}

func (c *catalogue) add(declared Statement) {
	s := &statement{Statement: declared, kind: write, index: c.size}
	c.size++
	if s.Local == "" {
		s.Local = s.SQL
	}
	s.command, s.counts = tag(strings.Fields(strings.ToUpper(s.SQL)))
	if s.command == "SELECT" {
		// Safe to guess: a statement that writes after all is refused on a
		// read-only connection.
		s.kind = read
	}
	c.bySQL[s.SQL] = s.ready()
}

// tag returns the beginning of a command tag and whether a number of rows
// follows.
// https://www.postgresql.org/docs/15/protocol-message-formats.html (CommandComplete)
func tag(words []string) (command string, counts bool) {
	switch words[0] {
	case "SELECT", "UPDATE", "DELETE":
		return words[0], true
	case "INSERT":
		return "INSERT 0", true // an object id that is always 0
	case "CREATE", "DROP":
		return strings.Join(words[:min(2, len(words))], " "), false
	}
	return words[0], false
}
