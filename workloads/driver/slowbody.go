package driver

import (
	"context"
	"io"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/workloads"
)

// slowPieces is the number of pieces that a slow body sends per second. At the rate of an
// old modem a piece is about one packet.
const slowPieces = 2

// slowBody is a request body that is sent at a limited rate. A nil slowBody has no limit.
type slowBody struct {
	ctx     context.Context
	rest    []byte
	rate    float64 // bytes per second
	sent    int
	start   time.Time    // of the first piece
	asleep  atomic.Int64 // ns that Read has waited
	closing atomic.Bool
}

// newSlowBody returns the body of an op with a BodyRate, or nil for other ops.
func newSlowBody(ctx context.Context, op workloads.Op) *slowBody {
	if op.BodyRate <= 0 || len(op.Body) == 0 {
		return nil
	}
	return &slowBody{ctx: ctx, rest: op.Body, rate: op.BodyRate}
}

// lasts returns the time to send the remaining body.
func (b *slowBody) lasts() time.Duration {
	if b == nil {
		return 0
	}
	return b.due(len(b.rest))
}

// slept returns the nanoseconds that the rate limit has delayed the request so far.
func (b *slowBody) slept() int64 {
	if b == nil {
		return 0
	}
	return b.asleep.Load()
}

func (b *slowBody) due(bytes int) time.Duration {
	return time.Duration(float64(bytes) / b.rate * float64(time.Second))
}

// Read returns the next piece as soon as the rate allows it.
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
	// The wait is computed from the start. Otherwise the delays of the pieces would add up.
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

// Close makes later calls of Read fail. The transport calls it when the response arrives
// before the body is sent.
func (b *slowBody) Close() error {
	b.closing.Store(true)
	return nil
}
