package trace

import (
	"encoding/binary"
	"fmt"
	"io"
	"iter"
	"slices"
	"sync"
	"time"
)

// Spool keeps the requests of a trace outside of memory, such as a temporary file.
type Spool interface {
	io.Writer // appends
	io.ReaderAt
}

// memory is a Spool for a small trace.
type memory struct{ data []byte }

func (m *memory) Write(p []byte) (int, error) {
	m.data = append(m.data, p...)
	return len(p), nil
}

func (m *memory) ReadAt(p []byte, offset int64) (int, error) {
	n := copy(p, m.data[min(offset, int64(len(m.data))):])
	if n < len(p) {
		return n, io.EOF
	}
	return n, nil
}

// blockSize is the number of requests in a block. All but the last block of a trace are full.
const blockSize = 1024

// stored is a request as the spool has it.
type stored struct {
	Record               // At as logged
	within time.Duration // time within its second, if the log has only whole seconds
}

// blocks is a list of requests in a Spool. Only the places of the blocks are in memory. After the last add and a flush
// it is safe for concurrent use.
type blocks struct {
	spool   Spool
	start   int64   // where the first block begins
	ends    []int64 // where the blocks end
	count   uint64
	pending []stored // not written yet
	decoded recent[[]stored]
}

// add appends a request.
func (b *blocks) add(r stored) error {
	b.pending = append(b.pending, r)
	b.count++
	if len(b.pending) < blockSize {
		return nil
	}
	return b.flush()
}

// flush writes the pending requests as a block.
func (b *blocks) flush() error {
	if len(b.pending) == 0 {
		return nil
	}
	text := encode(b.pending)
	if _, err := b.spool.Write(text); err != nil {
		return fmt.Errorf("keep its requests in a temporary file: %w\nset TMPDIR to a directory with more space", err)
	}
	b.ends = append(b.ends, b.end()+int64(len(text)))
	b.pending = b.pending[:0]
	return nil
}

// end returns the place after the last block.
func (b *blocks) end() int64 {
	if len(b.ends) == 0 {
		return b.start
	}
	return b.ends[len(b.ends)-1]
}

// next returns an empty list after these requests in the same spool. No more may be added to b.
func (b *blocks) next() *blocks { return &blocks{spool: b.spool, start: b.end()} }

// record returns request n.
func (b *blocks) record(n uint64) stored { return b.block(int(n / blockSize))[n%blockSize] }

// all returns all requests in order.
func (b *blocks) all() iter.Seq[stored] {
	return func(yield func(stored) bool) {
		for number := range b.ends {
			for _, r := range b.block(number) {
				if !yield(r) {
					return
				}
			}
		}
	}
}

// block returns the requests of a block. The caller must not change them.
func (b *blocks) block(number int) []stored {
	return b.decoded.get(number, func() []stored {
		begin := b.start
		if number > 0 {
			begin = b.ends[number-1]
		}
		text := make([]byte, b.ends[number]-begin)
		if n, err := b.spool.ReadAt(text, begin); n < len(text) {
			panic(fmt.Sprintf("trace: read back from the temporary file: %v", err)) // this process has written it
		}
		return decode(text)
	})
}

// encode returns requests as bytes: for each its time since the one before it, its time within its second, its client,
// and method and path with their lengths.
func encode(records []stored) (text []byte) {
	var last time.Duration
	for _, r := range records {
		text = binary.AppendUvarint(text, uint64(r.At-last))
		text = binary.AppendUvarint(text, uint64(r.within))
		text = binary.AppendUvarint(text, uint64(r.Client))
		for _, s := range []string{r.Method, r.Path} {
			text = append(binary.AppendUvarint(text, uint64(len(s))), s...)
		}
		last = r.At
	}
	return text
}

// decode returns the requests that encode was given.
func decode(text []byte) (records []stored) {
	number := func() uint64 {
		value, size := binary.Uvarint(text)
		text = text[size:]
		return value
	}
	var last time.Duration
	for len(text) > 0 {
		var r stored
		last += time.Duration(number())
		r.At, r.within, r.Client = last, time.Duration(number()), int(number())
		for _, s := range []*string{&r.Method, &r.Path} {
			length := number()
			*s, text = string(text[:length]), text[length:]
		}
		records = append(records, r)
	}
	return records
}

// recent keeps the values of the blocks that were used last: the ops in flight are requests of neighbouring blocks.
// It is safe for concurrent use.
type recent[T any] struct {
	mu     sync.Mutex
	values []numbered[T] // the last used one is last
}

type numbered[T any] struct {
	number int
	value  T
}

// kept is the number of values that a recent keeps.
const kept = 8

// get returns the value of a block, and makes it if it is not kept.
func (c *recent[T]) get(number int, make func() T) T {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.IndexFunc(c.values, func(v numbered[T]) bool { return v.number == number })
	var found numbered[T]
	switch {
	case i >= 0:
		found = c.values[i]
		c.values = slices.Delete(c.values, i, i+1)
	default:
		found = numbered[T]{number, make()}
		if len(c.values) >= kept {
			c.values = slices.Delete(c.values, 0, 1)
		}
	}
	c.values = append(c.values, found)
	return found.value
}
