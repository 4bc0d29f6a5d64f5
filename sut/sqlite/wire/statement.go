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

// pg returns PostgreSQL's object id of the type and its size in bytes. The id of an unknown type is 0. The size is -1
// if it varies.
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

// Statement is one statement of the catalogue. It declares the types of parameters and columns, because SQLite does not
// know them.
type Statement struct {
	// SQL is the text that clients send. Parameters are $1, $2 ... in the order of their first appearance.
	SQL string
	// Params are the types of $1, $2 ...
	Params []Type
	// Columns describe the returned rows; nil = the statement returns no rows.
	Columns []Column
	// Local is the text that the database runs instead of SQL; "" = SQL.
	Local string
}

// Command is a statement that clients can run: a statement of the catalogue, or one that this package answers.
type Command struct {
	Statement
	Index int  // in the catalogue
	Reads bool // runs on a read-only connection, unless a write transaction is open

	tag    string // command tag without the number of rows, for example "INSERT 0"
	counts bool   // the command tag ends with the number of rows
	oids   []uint32
	fields []pgproto3.FieldDescription

	act   func(*conn) error // answers a statement that is not of the catalogue; nil = of the catalogue
	value string            // the one value that act returns, if there is a column
}

// describe sets oids and fields from the declared types. It returns an error for an unknown type.
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

// Catalogue holds all statements that a node runs, by their text. It does not change after NewCatalogue.
type Catalogue map[string]*Command

// NewCatalogue returns a catalogue, or an error that names the invalid statement.
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
	// Health checks run this statement.
	if probe := "select 1"; c[probe] == nil {
		return c, c.add(Statement{SQL: probe, Columns: []Column{{Name: "?column?", Type: Int}}}, []string{"SELECT"})
	}
	return c, nil
}

func (c Catalogue) add(declared Statement, words []string) error {
	// The first word decides. A SELECT that writes is an error, because it runs on a read-only connection.
	s := &Command{Statement: declared, Index: len(c), Reads: words[0] == "SELECT"}
	if s.Local == "" {
		s.Local = s.SQL
	}
	s.tag, s.counts = tag(words)
	c[s.SQL] = s
	return s.describe()
}

// tag returns a command tag without the number of rows. counts reports whether that number must be added.
// https://www.postgresql.org/docs/15/protocol-message-formats.html (CommandComplete)
func tag(words []string) (command string, counts bool) {
	switch words[0] {
	case "SELECT", "UPDATE", "DELETE":
		return words[0], true
	case "INSERT":
		return "INSERT 0", true // the 0 is an object id that PostgreSQL no longer uses
	case "CREATE", "DROP":
		return strings.Join(words[:min(2, len(words))], " "), false
	}
	return words[0], false
}
