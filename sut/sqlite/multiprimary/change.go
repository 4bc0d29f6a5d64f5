package multiprimary

import (
	"cmp"
	"encoding/binary"
	"errors"
	"math"
)

// Version identifies a change to a row. The version with the later time is higher. If the times are equal, the origin
// names decide.
type Version struct {
	AtUS   int64
	Origin string
}

// Compare orders versions.
func (v Version) Compare(other Version) int {
	return cmp.Or(cmp.Compare(v.AtUS, other.AtUS), cmp.Compare(v.Origin, other.Origin))
}

// Change is the new state of a row.
type Change struct {
	Table string
	Key   []byte  // the values of the primary key, encoded by appendValues
	Base  Version // the version that this change replaced; zero = there was none
	Row   []any   // all columns as int64, float64, string, []byte or nil; nil = deleted
	// Added is, for each column, the int64 that an update added to it, or nil; nil = an insertion or a deletion.
	Added []any
}

// The tags of encoded values.
const (
	tagNull    = 'n'
	tagInteger = 'i'
	tagFloat   = 'f'
	tagText    = 't'
	tagBlob    = 'b'
)

// appendValues encodes a key or a row. parseValues decodes it.
func appendValues(out []byte, values []any) []byte {
	for _, value := range values {
		switch v := value.(type) {
		case int64:
			out = binary.AppendVarint(append(out, tagInteger), v)
		case float64:
			out = binary.BigEndian.AppendUint64(append(out, tagFloat), math.Float64bits(v))
		case string:
			out = appendBytes(append(out, tagText), v)
		case []byte:
			out = appendBytes(append(out, tagBlob), v)
		default:
			out = append(out, tagNull)
		}
	}
	return out
}

func appendBytes[T string | []byte](out []byte, b T) []byte {
	return append(binary.AppendUvarint(out, uint64(len(b))), b...)
}

// appendChange encodes a change: table, key, base, row, added. A row
// has one column or more, so an empty row means "deleted".
func appendChange(out []byte, c *Change) []byte {
	out = appendBytes(appendBytes(out, c.Table), c.Key)
	out = appendBytes(binary.AppendVarint(out, c.Base.AtUS), c.Base.Origin)
	return appendBytes(appendBytes(out, appendValues(nil, c.Row)), appendValues(nil, c.Added))
}

func parseChanges(body []byte) (changes []Change, err error) {
	r := reader{rest: body}
	for len(r.rest) > 0 && !r.broken {
		c := Change{Table: string(r.bytes()), Key: r.bytes(), Base: Version{AtUS: r.varint()}}
		c.Base.Origin = string(r.bytes())
		for _, values := range []*[]any{&c.Row, &c.Added} {
			if text := r.bytes(); len(text) > 0 {
				if *values, err = parseValues(text); err != nil {
					return nil, err
				}
			}
		}
		changes = append(changes, c)
	}
	if r.broken {
		return nil, errTruncated
	}
	return changes, nil
}

// parseValues decodes a key or a row.
func parseValues(body []byte) ([]any, error) {
	r := reader{rest: body}
	values := []any{}
	for len(r.rest) > 0 && !r.broken {
		values = append(values, r.value())
	}
	if r.broken {
		return nil, errTruncated
	}
	return values, nil
}

var errTruncated = errors.New("changes are truncated or invalid")

// reader decodes bytes.
type reader struct {
	rest   []byte
	broken bool // the bytes are truncated or invalid
}

func (r *reader) take(count uint64) []byte {
	if count > uint64(len(r.rest)) {
		r.rest, r.broken = nil, true
		return nil
	}
	taken := r.rest[:count]
	r.rest = r.rest[count:]
	return taken
}

func (r *reader) varint() int64 {
	v := r.uvarint() // zigzag, as AppendVarint encodes it
	return int64(v>>1) ^ -int64(v&1)
}

func (r *reader) uvarint() uint64 {
	v, size := binary.Uvarint(r.rest)
	if size <= 0 {
		r.rest, r.broken = nil, true
		return 0
	}
	r.rest = r.rest[size:]
	return v
}

func (r *reader) bytes() []byte { return r.take(r.uvarint()) }

func (r *reader) value() any {
	tag := r.take(1)
	if tag == nil {
		return nil
	}
	switch tag[0] {
	case tagInteger:
		return r.varint()
	case tagFloat:
		if b := r.take(8); b != nil {
			return math.Float64frombits(binary.BigEndian.Uint64(b))
		}
		return nil
	case tagText:
		return string(r.bytes())
	case tagBlob:
		return append([]byte{}, r.bytes()...)
	case tagNull:
		return nil
	}
	r.broken = true
	return nil
}
