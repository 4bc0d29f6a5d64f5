package sqlite

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"unicode/utf8"

	wire "github.com/jeroenrinzema/psql-wire"
	"github.com/jeroenrinzema/psql-wire/codes"
	"zombiezen.com/go/sqlite"
)

// bind gives a prepared statement its parameters. It takes what PostgreSQL
// takes and refuses what PostgreSQL refuses, NUL and broken UTF-8 for example,
// which SQLite would store.
func bind(to *prepared, types []Type, params []wire.Parameter) error {
	if len(params) != len(types) {
		return fault(codes.ProtocolViolation, fmt.Sprintf("bind message supplies %d parameters, but the statement requires %d", len(params), len(types)))
	}
	for i, t := range types {
		value := params[i].Value()
		if value == nil {
			to.bound[i] = nil
			to.BindNull(i + 1)
			continue
		}
		if t == Text {
			if !utf8.Valid(value) || bytes.IndexByte(value, 0) >= 0 {
				return fault(codes.CharacterNotInRepertoire, fmt.Sprintf(`invalid byte sequence for encoding "UTF8" in parameter $%d`, i+1))
			}
			to.BindText(i+1, string(value))
			continue
		}
		n, err := integer(t, params[i].Format(), value)
		if err != nil {
			return fmt.Errorf("parameter $%d: %w", i+1, err)
		}
		to.bindInt(i, n)
	}
	return nil
}

// integer decodes a whole number in either of the two formats.
func integer(t Type, format wire.FormatCode, value []byte) (int64, error) {
	switch {
	case format == wire.TextFormat:
		n, err := strconv.ParseInt(string(value), 10, int(t.size())*8)
		if err != nil {
			return 0, fault(codes.InvalidTextRepresentation, fmt.Sprintf("invalid input syntax for type %s", t))
		}
		return n, nil
	case len(value) != int(t.size()):
		return 0, fault(codes.InvalidBinaryRepresentation, fmt.Sprintf("incorrect binary data format: %d bytes for type %s", len(value), t))
	case t == Int:
		return int64(int32(binary.BigEndian.Uint32(value))), nil
	}
	return int64(binary.BigEndian.Uint64(value)), nil
}

// row copies the current row of a statement: it is valid after the next step.
func row(from *sqlite.Stmt, columns []Column) []any {
	values := make([]any, len(columns))
	for i, col := range columns {
		switch {
		case from.ColumnIsNull(i):
		case col.Type == Text:
			values[i] = from.ColumnText(i)
		default:
			values[i] = from.ColumnInt64(i)
		}
	}
	return values
}
