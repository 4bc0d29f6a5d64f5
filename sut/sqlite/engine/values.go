package engine

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"unicode/utf8"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/stagebench/stagebench/sut/sqlite/wire"
)

// bind binds the parameters of a compiled statement. It rejects what PostgreSQL rejects. SQLite alone would store NUL
// and broken UTF-8, for example.
func bind(to *compiled, types []wire.Type, with *pgproto3.Bind) error {
	params := with.Parameters
	if len(params) != len(types) {
		const text = "bind message supplies %d parameters, but the statement requires %d"
		return wire.Errorf(wire.ProtocolViolation, text, len(params), len(types))
	}
	for i, t := range types {
		value := params[i]
		switch {
		case value == nil:
			to.bound[i].known = false
			to.BindNull(i + 1)
		case t != wire.Text:
			n, err := integer(t, wire.Format(with.ParameterFormatCodes, i), value)
			if err != nil {
				return fmt.Errorf("parameter $%d: %w", i+1, err)
			}
			to.bindInteger(i, n)
		case !utf8.Valid(value) || bytes.IndexByte(value, 0) >= 0:
			const text = `invalid byte sequence for encoding "UTF8" in parameter $%d`
			return wire.Errorf(wire.CharacterNotInRepertoire, text, i+1)
		default:
			to.BindText(i+1, string(value))
		}
	}
	return nil
}

// integer decodes an integer in text or binary format.
func integer(t wire.Type, format int16, value []byte) (int64, error) {
	width := 8
	if t == wire.Int {
		width = 4
	}
	switch {
	case format == pgproto3.TextFormat:
		n, err := strconv.ParseInt(string(value), 10, 8*width)
		if err != nil {
			return 0, wire.Errorf(wire.InvalidTextRepresentation, "invalid input syntax for type %s", t)
		}
		return n, nil
	case len(value) != width:
		return 0, wire.Errorf(wire.InvalidBinary, "incorrect binary data format: %d bytes for type %s", len(value), t)
	case t == wire.Int:
		return int64(int32(binary.BigEndian.Uint32(value))), nil
	}
	return int64(binary.BigEndian.Uint64(value)), nil
}

// appendRow appends the current row of a statement as a DataRow message. This code is hot: it makes no allocation per
// value and copies each value once.
//
// https://www.postgresql.org/docs/15/protocol-message-formats.html (DataRow)
func appendRow(out []byte, from *compiled, columns []wire.Column, formats []int16) []byte {
	start := len(out)
	out = append(out, 'D', 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(len(columns)))
	for i, col := range columns {
		switch {
		case from.ColumnIsNull(i):
			out = binary.BigEndian.AppendUint32(out, ^uint32(0)) // -1
		case col.Type == wire.Text:
			n := from.ColumnLen(i)
			out = binary.BigEndian.AppendUint32(out, uint32(n))
			out = append(out, make([]byte, n)...) // grows in place, without a temporary slice
			from.ColumnBytes(i, out[len(out)-n:])
		case wire.Format(formats, i) == pgproto3.TextFormat:
			var digits [20]byte
			text := strconv.AppendInt(digits[:0], from.ColumnInt64(i), 10)
			out = binary.BigEndian.AppendUint32(out, uint32(len(text)))
			out = append(out, text...)
		case col.Type == wire.Int:
			out = binary.BigEndian.AppendUint32(out, 4)
			out = binary.BigEndian.AppendUint32(out, uint32(from.ColumnInt64(i)))
		default:
			out = binary.BigEndian.AppendUint32(out, 8)
			out = binary.BigEndian.AppendUint64(out, uint64(from.ColumnInt64(i)))
		}
	}
	binary.BigEndian.PutUint32(out[start+1:], uint32(len(out)-start-1))
	return out
}
