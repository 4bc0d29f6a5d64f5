package edge

import (
	"context"
	"errors"
	"sync"
)

// errTooSlow means that a reader of a body that is not kept did not read for stallTimeout.
var errTooSlow = errors.New("the client did not read in time")

// body is the body of a fill. One goroutine writes it while any number read it, each from the beginning. A body is
// kept in memory until it is stored. When it turns out to be too large, the writer drops what all readers have read,
// and waits for the slowest one.
type body struct {
	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	buf     []byte        // the bytes from base on; written bytes never change
	base    int64
	dropped bool // the beginning is lost: no reader may join
	done    bool
	err     error // why the body broke off; valid when done
	readers map[*reader]struct{}
	idle    func(int) // called with the new number of readers when one leaves or joins
}

// reader reads a body.
type reader struct {
	body *body
	pos  int64
	err  error // set by the writer when the reader is too slow
}

func newBody(idle func(int)) *body {
	return &body{changed: make(chan struct{}), readers: map[*reader]struct{}{}, idle: idle}
}

// announce wakes all who wait for a change. The caller holds the mutex.
func (b *body) announce() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// join returns a reader at the beginning; nil = the beginning is lost. The caller must call leave.
func (b *body) join() *reader {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.dropped || b.done && b.err != nil {
		return nil
	}
	r := &reader{body: b}
	b.readers[r] = struct{}{}
	b.idle(len(b.readers))
	return r
}

// leave ends a reader.
func (r *reader) leave() {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.readers, r)
	b.announce()
	b.idle(len(b.readers))
}

// next returns the next bytes, at most those that are there, and whether they are the last ones. It calls wait once if
// there are none yet. It returns the error of ctx when ctx ends first.
func (r *reader) next(ctx context.Context, wait func()) (part []byte, last bool, err error) {
	b := r.body
	for {
		b.mu.Lock()
		if err = r.err; err != nil {
			b.mu.Unlock()
			return nil, false, err
		}
		part = b.buf[r.pos-b.base:]
		last, err = b.done, b.err
		changed := b.changed
		b.mu.Unlock()
		switch {
		case len(part) > 0:
			return part, last && err == nil, nil
		case last:
			return nil, err == nil, err
		}
		if wait != nil {
			wait()
			wait = nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, false, ctx.Err()
		}
	}
}

// advance says that the reader has used n bytes.
func (r *reader) advance(n int) {
	b := r.body
	b.mu.Lock()
	defer b.mu.Unlock()
	r.pos += int64(n)
	if b.dropped {
		b.announce()
	}
}

// room returns space for more bytes, of the given size, after the written ones. Only the writer calls it. The space
// grows by doubling, up to capacity.
func (b *body) room(capacity int64) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.buf) < cap(b.buf) {
		return b.buf[len(b.buf):cap(b.buf)]
	}
	grown := make([]byte, len(b.buf), capacity)
	copy(grown, b.buf)
	b.buf = grown
	return grown[len(grown):cap(grown)]
}

// extend says that the writer has filled n bytes of the room.
func (b *body) extend(n int) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = b.buf[:len(b.buf)+n]
	b.announce()
}

// end says that the writer has filled n bytes of the room, and ends the body; err is why it broke off.
func (b *body) end(n int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.buf = b.buf[:len(b.buf)+n]
	b.done, b.err = true, err
	b.announce()
}

// bytes returns what was written, n bytes of the room included, for a body whose beginning is not lost.
func (b *body) bytes(n int) []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.buf[:len(b.buf)+n]
}

// drop gives up keeping the body: from now on the writer waits for the readers.
func (b *body) drop() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.dropped = true
	b.announce()
}

// drain waits until all readers have read what was written, and then empties the buffer. expired ends the wait: readers
// that have not read everything are broken off. It returns the number of readers that remain.
func (b *body) drain(ctx context.Context, expired <-chan struct{}) int {
	for {
		b.mu.Lock()
		end, behind := b.base+int64(len(b.buf)), 0
		for r := range b.readers {
			if r.pos < end && r.err == nil {
				behind++
			}
		}
		if behind == 0 {
			b.base, b.buf = end, make([]byte, 0, chunkBytes)
			remaining := 0
			for r := range b.readers {
				if r.err == nil {
					remaining++
				}
			}
			b.mu.Unlock()
			return remaining
		}
		changed := b.changed
		b.mu.Unlock()
		select {
		case <-changed:
		case <-ctx.Done():
			return 0
		case <-expired:
			b.breakOff(end)
		}
	}
}

// breakOff ends the readers that have not read up to end.
func (b *body) breakOff(end int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for r := range b.readers {
		if r.pos < end {
			r.err = errTooSlow
		}
	}
	b.announce()
}
