package sqlite

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"strconv"
	"unicode/utf8"

	wire "github.com/jeroenrinzema/psql-wire"
	"github.com/jeroenrinzema/psql-wire/codes"
)

// bind gives a compiled statement its parameters. It takes what PostgreSQL
// takes and refuses what PostgreSQL refuses, NUL and broken UTF-8 for example,
// which SQLite would store.
func bind(to *compiled, types []Type, params []wire.Parameter) error {
	if len(params) != len(types) {
		return fault(codes.ProtocolViolation, fmt.Sprintf("bind message supplies %d parameters, but the statement requires %d", len(params), len(types)))
	}
	for i, t := range types {
		value := params[i].Value()
		switch {
		case value == nil:
			to.bound[i].known = false
			to.BindNull(i + 1)
		case t != Text:
			n, err := integer(t, params[i].Format(), value)
			if err != nil {
				return fmt.Errorf("parameter $%d: %w", i+1, err)
			}
			to.bindInteger(i, n)
		case !utf8.Valid(value) || bytes.IndexByte(value, 0) >= 0:
			return fault(codes.CharacterNotInRepertoire, fmt.Sprintf(`invalid byte sequence for encoding "UTF8" in parameter $%d`, i+1))
		default:
			to.BindText(i+1, string(value))
		}
	}
	return nil
}

// integer decodes a whole number in either of the two formats.
func integer(t Type, format wire.FormatCode, value []byte) (int64, error) {
	switch {
	case format == wire.TextFormat:
		n, err := strconv.ParseInt(string(value), 10, 8*int(t.size()))
		if err != nil {
			return 0, fault(codes.InvalidTextRepresentation, "invalid input syntax for type "+string(t))
		}
		return n, nil
	case len(value) != int(t.size()):
		return 0, fault(codes.InvalidBinaryRepresentation, fmt.Sprintf("incorrect binary data format: %d bytes for type %s", len(value), t))
	case t == Int:
		return int64(int32(binary.BigEndian.Uint32(value))), nil
	}
	return int64(binary.BigEndian.Uint64(value)), nil
}

// formatOf returns the format of a result column: none given means text for
// all, one given is for all.
func formatOf(formats []wire.FormatCode, column int) wire.FormatCode {
	switch len(formats) {
	case 0:
		return wire.TextFormat
	case 1:
		return formats[0]
	}
	return formats[column]
}

// checkFormats refuses formats that do not fit the columns of a result.
func checkFormats(formats []wire.FormatCode, columns int) error {
	if len(formats) > 1 && len(formats) != columns {
		return fault(codes.ProtocolViolation, fmt.Sprintf("bind message has %d result formats but query has %d columns", len(formats), columns))
	}
	for _, f := range formats {
		if f != wire.TextFormat && f != wire.BinaryFormat {
			return fault(codes.InvalidParameterValue, fmt.Sprintf("unsupported format code: %d", f))
		}
	}
	return nil
}

// appendRow appends the current row of a statement as a DataRow message. The
// encoding is ours and not psql-wire's since this is what a node spends its
// time on: nothing is allocated and every value is copied once.
// https://www.postgresql.org/docs/15/protocol-message-formats.html (DataRow)
func appendRow(out []byte, from *compiled, columns []Column, formats []wire.FormatCode) []byte {
	start := len(out)
	out = append(out, 'D', 0, 0, 0, 0)
	out = binary.BigEndian.AppendUint16(out, uint16(len(columns)))
	for i, col := range columns {
		switch {
		case from.ColumnIsNull(i):
			out = binary.BigEndian.AppendUint32(out, ^uint32(0)) // -1
		case col.Type == Text:
			n := from.ColumnLen(i)
			out = binary.BigEndian.AppendUint32(out, uint32(n))
			out = append(out, make([]byte, n)...) // grows in place, allocates no slice
			from.ColumnBytes(i, out[len(out)-n:])
		case formatOf(formats, i) == wire.TextFormat:
			var digits [20]byte
			text := strconv.AppendInt(digits[:0], from.ColumnInt64(i), 10)
			out = binary.BigEndian.AppendUint32(out, uint32(len(text)))
			out = append(out, text...)
		case col.Type == Int:
			out = binary.BigEndian.AppendUint32(out, 4)
			out = binary.BigEndian.AppendUint32(out, uint32(from.ColumnInt64(i)))
		default:
			out = binary.BigEndian.AppendUint32(out, 8)
			out = binary.BigEndian.AppendUint64(out, uint64(from.ColumnInt64(i)))
		}
	}
	return seal(out, start)
}

// appendText appends a DataRow message of one text.
func appendText(out []byte, text string) []byte {
	start := len(out)
	out = append(out, 'D', 0, 0, 0, 0, 0, 1)
	out = binary.BigEndian.AppendUint32(out, uint32(len(text)))
	return seal(append(out, text...), start)
}

// completion is the message that ends a result: CommandComplete, or
// EmptyQueryResponse for a statement without words, which has no tag.
func completion(tag string) []byte {
	if tag == "" {
		return []byte{'I', 0, 0, 0, 4}
	}
	out := append(make([]byte, 0, len(tag)+6), 'C', 0, 0, 0, 0)
	out = append(out, tag...)
	return seal(append(out, 0), 0)
}

// seal writes the length into the message that begins at start.
func seal(out []byte, start int) []byte {
	binary.BigEndian.PutUint32(out[start+1:], uint32(len(out)-start-1))
	return out
}
