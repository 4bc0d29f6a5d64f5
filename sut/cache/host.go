package cache

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"time"

	"github.com/stagebench/stagebench/sut"
)

// retryAfter is how long a host that did not answer gets no requests.
const retryAfter = time.Second

// errBusy means that the host may be healthy, but all connections to it were in use.
var errBusy = fmt.Errorf("%w for now: all connections are busy", ErrUnavailable)

// errHung means that the host timed out less than retryAfter ago, so it got no
// request. It may still run and hold unflushed writes.
var errHung = fmt.Errorf("%w: it timed out a moment ago", ErrUnavailable)

// errNotSent means that the host is unavailable and that it did not get the request.
var errNotSent = fmt.Errorf("%w, and the request was not sent", ErrUnavailable)

// wire is the protocol client of one host.
type wire interface {
	get(ctx context.Context, key string) (value []byte, found bool, err error)
	set(ctx context.Context, key string, value []byte, ttl time.Duration) error
	delete(ctx context.Context, key string) error
	// fetch makes the host load a missing record.
	fetch(ctx context.Context, key string) (value []byte, hit bool, err error)
	// apply makes the host write a record.
	apply(ctx context.Context, key string, w Write) (version int64, err error)
	// classify says what an error of these methods means for the host.
	classify(err error) outcome
	close()
}

// outcome says how far a request got.
type outcome int

const (
	noAnswer     outcome = iota // the request may have been sent, and no answer came
	answered                    // the host has answered, possibly with an error
	poolBusy                    // nothing was sent, because all connections were in use
	notConnected                // nothing was sent, because connecting failed
)

// host is one cache host with one connection pool, and the state of its health.
type host struct {
	wire
	name, address string
	downUntil     atomic.Int64 // Unix time in ns at which it is retried; 0 = healthy
	hung          atomic.Bool  // the last failure was a timeout; valid while downUntil is not 0
}

func newHost(peer sut.Peer, c Config) *host {
	h := &host{name: peer.Node, address: peer.Address}
	if c.Protocol == Memcached {
		h.wire = newMemcachedWire(peer.Address, c)
	} else {
		h.wire = newRESPWire(peer.Address, c)
	}
	return h
}

// request sends a request unless the host is down. It updates the health of the host.
func (h *host) request(ctx context.Context, do func(*host) error) error {
	if err := contextErr(ctx); err != nil {
		return err
	}
	if !h.allowed(time.Now()) {
		if h.hung.Load() {
			return errHung
		}
		return errNotSent
	}
	err := do(h)
	result := answered
	if err != nil {
		result = h.classify(err)
	}
	switch {
	case result == answered:
		if h.downUntil.Load() != 0 {
			h.downUntil.Store(0)
		}
		return err
	case contextErr(ctx) != nil:
		// The caller gave up. This says nothing about the host.
		return contextErr(ctx)
	case result == poolBusy:
		// The requests on the busy connections find out whether the host is down.
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	var netErr net.Error
	hung := errors.As(err, &netErr) && netErr.Timeout() || errors.Is(err, context.DeadlineExceeded)
	h.hung.Store(hung)
	h.downUntil.Store(time.Now().Add(retryAfter).UnixNano())
	// A host that hangs may also time out new connections. It still runs and may hold
	// unflushed writes, so a connect timeout is not reported as errNotSent.
	if result == notConnected && !hung {
		return fmt.Errorf("%w: %w", errNotSent, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// contextErr returns the error of a context, or nil. It checks the deadline itself: a
// read that is bounded by the deadline can fail shortly before ctx.Err is set.
func contextErr(ctx context.Context) error {
	if deadline, bounded := ctx.Deadline(); bounded && ctx.Err() == nil && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// allowed reports whether a request may be sent. When the pause of a host that is down
// ends, one request probes it. The other requests are refused for another retryAfter,
// or until the host answers.
func (h *host) allowed(now time.Time) bool {
	until := h.downUntil.Load()
	return until == 0 ||
		now.UnixNano() >= until && h.downUntil.CompareAndSwap(until, now.Add(retryAfter).UnixNano())
}
