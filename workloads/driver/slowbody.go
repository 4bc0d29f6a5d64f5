package driver

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/workloads"
)

// slowPieces is how many pieces a second a slow line sends: about a packet each
// at the rate of an old modem, and no flood of tiny ones at a higher rate.
const slowPieces = 2

// slowBody is a body that is sent over a slow line. The nil slowBody is none.
type slowBody struct {
	ctx     context.Context
	rest    []byte
	rate    float64 // bytes per second
	sent    int
	start   time.Time // of the first piece
	asleep  atomic.Int64
	closing atomic.Bool
}

// newSlowBody returns the body of an op that has a slow line, else nil.
func newSlowBody(ctx context.Context, op workloads.Op) *slowBody {
	if op.BodyRate <= 0 || len(op.Body) == 0 {
		return nil
	}
	return &slowBody{ctx: ctx, rest: op.Body, rate: op.BodyRate}
}

// lasts is how long the line takes for the whole body.
func (b *slowBody) lasts() time.Duration {
	if b == nil {
		return 0
	}
	return b.due(len(b.rest))
}

// slept is how long the line has held the request up so far, in nanoseconds.
func (b *slowBody) slept() int64 {
	if b == nil {
		return 0
	}
	return b.asleep.Load()
}

func (b *slowBody) due(bytes int) time.Duration {
	return time.Duration(float64(bytes) / b.rate * float64(time.Second))
}

// Read returns the next piece when the line has had the time for it.
func (b *slowBody) Read(p []byte) (int, error) {
	if len(b.rest) == 0 {
		return 0, io.EOF
	}
	if b.closing.Load() {
		return 0, http.ErrBodyReadAfterClose
	}
	if b.start.IsZero() {
		b.start = time.Now()
	}
	n := min(len(p), len(b.rest), max(1, int(b.rate/slowPieces)))
	begin := time.Now()
	// Against the start, so that the lateness of one piece does not add to the
	// next.
	if wait := b.due(b.sent+n) - begin.Sub(b.start); wait > 0 {
		select {
		case <-time.After(wait):
		case <-b.ctx.Done():
			return 0, b.ctx.Err()
		}
		b.asleep.Add(int64(time.Since(begin)))
	}
	copy(p, b.rest[:n])
	b.rest, b.sent = b.rest[n:], b.sent+n
	return n, nil
}

// Close makes a Read that comes later fail: the answer was there before the
// body's end.
func (b *slowBody) Close() error {
	b.closing.Store(true)
	return nil
}
