package sqlite

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgtype"
	wire "github.com/jeroenrinzema/psql-wire"
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
	read     kind = iota // on a read-only connection, unless a transaction is open
	write                // in the line of writers
	control              // begins or ends a transaction, or is answered without SQLite
	unbacked             // stands for a statement that does not exist
)

// statement is a Statement made ready: what is the same for all clients is
// made once.
type statement struct {
	Statement
	kind    kind
	index   int    // of its prepared form in every SQLite connection
	command string // of its command tag: SELECT, INSERT ...
	counts  bool   // the tag ends with the number of rows
	run     func(*session, wire.DataWriter) error

	extended, simple wire.PreparedStatements // the same, for the two ways to ask
}

// catalogue holds every statement by its exact text.
type catalogue struct {
	bySQL map[string]*statement
	size  int // of the table of prepared forms
}

func newCatalogue(statements []Statement) (*catalogue, error) {
	c := &catalogue{bySQL: map[string]*statement{}}
	for _, declared := range statements {
		s := &statement{Statement: declared, kind: write, index: c.size}
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
		words := strings.Fields(strings.ToUpper(declared.SQL))
		if len(words) == 0 {
			return nil, fmt.Errorf("statement %d of the catalogue is empty", c.size)
		}
		if s.Local == "" {
			s.Local = s.SQL
		}
		s.command, s.counts = tag(words)
		if s.command == "SELECT" {
			// Safe to guess: a statement that writes after all is refused on a
			// read-only connection.
			s.kind = read
		}
		if _, twice := c.bySQL[s.SQL]; twice {
			return nil, fmt.Errorf("statement %q is in the catalogue twice", s.SQL)
		}
		c.add(s)
		c.size++
	}
	return c, nil
}

// add makes the forms of a statement that the wire protocol asks for.
func (c *catalogue) add(s *statement) {
	s.extended, s.simple = s.prepared(false), s.prepared(true)
	c.bySQL[s.SQL] = s
}

// tag returns the first words of a command tag and whether a number of rows
// follows them.
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

// prepared returns the statement as psql-wire wants it.
func (s *statement) prepared(simple bool) wire.PreparedStatements {
	oids := make([]uint32, len(s.Params))
	for i, t := range s.Params {
		oids[i] = t.oid()
	}
	columns := make(wire.Columns, len(s.Columns))
	for i, col := range s.Columns {
		columns[i] = wire.Column{Name: col.Name, Oid: col.Type.oid(), Width: col.Type.size()}
	}
	return wire.Prepared(wire.NewStatement(s.handler(simple), wire.WithParameters(oids), wire.WithColumns(columns)))
}
