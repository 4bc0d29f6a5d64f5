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

// silence is how long a host that did not answer is left alone.
const silence = time.Second

// errBusy says that a host is there, and that all connections to it are busy.
var errBusy = fmt.Errorf("%w for now", ErrUnavailable)

// errSilent says that a host did not answer a moment ago, and may be there all the
// same.
var errSilent = fmt.Errorf("%w: it does not answer", ErrUnavailable)

// errUnasked says that a host is unavailable and that nothing was sent to it.
var errUnasked = fmt.Errorf("%w, and was not asked", ErrUnavailable)

// wire is a host as its protocol has it. An error is judged by who gave it.
type wire interface {
	get(ctx context.Context, key string) (value []byte, found bool, err error)
	set(ctx context.Context, key string, value []byte, ttl time.Duration) error
	delete(ctx context.Context, key string) error
	// fetch has the host load what it does not have.
	fetch(ctx context.Context, key string) (value []byte, hit bool, err error)
	// apply has the host write.
	apply(ctx context.Context, key string, w Write) (version int64, err error)
	judge(err error) verdict
	close()
}

// verdict is what an error says of a host.
type verdict int

const (
	unanswered verdict = iota // it may have been asked, and did not answer
	refused                   // it answers, and says no
	crowded                   // nothing was sent, as all connections are busy
	unreached                 // nothing was sent, as there is no connection
)

// host is one cache host as a web host sees it over one of its lines.
type host struct {
	wire
	name, address string
	silent        atomic.Int64 // unix ns until when it is left alone; 0 = it is well
	hangs         atomic.Bool  // it is silent and keeps its connections, as one that is paused
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

// ask does something at the host unless it is silent, and notes whether it answers.
func (h *host) ask(ctx context.Context, do func(*host) error) error {
	if err := over(ctx); err != nil {
		return err
	}
	if !h.mayAsk(time.Now()) {
		if h.hangs.Load() {
			return errSilent
		}
		return errUnasked
	}
	err := do(h)
	said := refused // an answer is one, whatever it says
	if err != nil {
		said = h.judge(err)
	}
	switch {
	case said == refused:
		if h.silent.Load() != 0 {
			h.silent.Store(0)
		}
		return err
	case over(ctx) != nil:
		// The caller left: that says nothing of the host.
		return over(ctx)
	case said == crowded:
		// It is slow for us, which the connections that are busy will find out.
		return fmt.Errorf("%w: %w", errBusy, err)
	}
	var late net.Error
	hangs := errors.As(err, &late) && late.Timeout() || errors.Is(err, context.DeadlineExceeded)
	h.hangs.Store(hangs)
	h.silent.Store(time.Now().Add(silence).UnixNano())
	// One that hangs until nobody can connect to it any more is there all the same.
	if said == unreached && !hangs {
		return fmt.Errorf("%w: %w", errUnasked, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}

// over is why a context has ended, or nil. A read that ends at a context's deadline
// may do so just before the context itself.
func over(ctx context.Context) error {
	if deadline, bounded := ctx.Deadline(); bounded && ctx.Err() == nil && !time.Now().Before(deadline) {
		return context.DeadlineExceeded
	}
	return ctx.Err()
}

// mayAsk reports whether the host may be asked. When its silence is over one request
// tries it, while the others wait for a second more or until that one is answered.
func (h *host) mayAsk(now time.Time) bool {
	until := h.silent.Load()
	return until == 0 || now.UnixNano() >= until && h.silent.CompareAndSwap(until, now.Add(silence).UnixNano())
}
