package wire

import (
	"fmt"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/jackc/pgx/v5/pgtype"
)

// Type is the SQL type of a parameter or of a result column.
type Type string

// The types that a catalogue may use.
const (
	BigInt Type = "bigint" // 64 bits
	Int    Type = "int"    // 32 bits
	Text   Type = "text"   // UTF-8 without NUL
)

// pg returns the type's number in PostgreSQL, 0 for an unknown type, and its width in bytes, -1 if it varies.
func (t Type) pg() (oid uint32, size int16) {
	switch t {
	case BigInt:
		return pgtype.Int8OID, 8
	case Int:
		return pgtype.Int4OID, 4
	case Text:
		return pgtype.TextOID, -1
	}
	return 0, 0
}

// Column is one column of a result.
type Column struct {
	Name string
	Type Type
}

// Statement is one statement of the catalogue. SQLite gives it no types, so they are declared here.
type Statement struct {
	// SQL is the text that clients send. Parameters are $1, $2 ... in the order of their first appearance.
	SQL string
	// Params are the types of $1, $2 ...
	Params []Type
	// Columns describe the rows that come back; nil if none do.
	Columns []Column
	// Local is what the database runs in place of SQL; "" = SQL itself.
	Local string
}

// Command is a statement that clients can run: of the catalogue, or answered by the protocol itself.
type Command struct {
	Statement
	Index int  // in the catalogue
	Reads bool // runs on a read-only connection, unless a transaction is open

	tag    string // SELECT or INSERT 0 for example ...
	counts bool   // ... to which the number of rows is added
	oids   []uint32
	fields []pgproto3.FieldDescription

	act   func(*conn) error // of a statement that the protocol answers; nil = of the catalogue
	value string            // of its one row, if it has a column
}

func (c *Command) describe() error {
	for _, t := range c.Params {
		oid, _ := t.pg()
		if oid == 0 {
			return fmt.Errorf("statement %q: unknown type %q", c.SQL, t)
		}
		c.oids = append(c.oids, oid)
	}
	for _, col := range c.Columns {
		oid, size := col.Type.pg()
		if oid == 0 {
			return fmt.Errorf("statement %q: column %s: unknown type %q", c.SQL, col.Name, col.Type)
		}
		c.fields = append(c.fields, pgproto3.FieldDescription{
			Name: []byte(col.Name), DataTypeOID: oid, DataTypeSize: size, TypeModifier: -1,
		})
	}
	return nil
}

// Catalogue is all statements that a node runs, by their text. It is never changed.
type Catalogue map[string]*Command

// NewCatalogue makes a catalogue, or says which statement is no good.
func NewCatalogue(statements []Statement) (Catalogue, error) {
	c := Catalogue{}
	for _, declared := range statements {
		switch words := strings.Fields(strings.ToUpper(declared.SQL)); {
		case len(words) == 0:
			return nil, fmt.Errorf("statement %d of the catalogue is empty", len(c))
		case c[declared.SQL] != nil:
			return nil, fmt.Errorf("statement %q is in the catalogue twice", declared.SQL)
		default:
			if err := c.add(declared, words); err != nil {
				return nil, err
			}
		}
	}
	// Health checks ask this.
	if probe := "select 1"; c[probe] == nil {
		return c, c.add(Statement{SQL: probe, Columns: []Column{{Name: "?column?", Type: Int}}}, []string{"SELECT"})
	}
	return c, nil
}

func (c Catalogue) add(declared Statement, words []string) error {
	// Safe to guess: a SELECT that writes is refused on a read-only connection.
	s := &Command{Statement: declared, Index: len(c), Reads: words[0] == "SELECT"}
	if s.Local == "" {
		s.Local = s.SQL
	}
	s.tag, s.counts = tag(words)
	c[s.SQL] = s
	return s.describe()
}

// tag returns the beginning of a command tag and whether a number of rows follows.
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
