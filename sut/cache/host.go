package cache

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/stagebench/stagebench/sut"
)

// silence is how long a host that did not answer is left alone.
const silence = time.Second

// errLeft says that a host is not one any more.
var errLeft = errors.New("cache: the host has left")

// host is one cache host as a web host sees it.
type host struct {
	name, address string
	redis         *redis.Client
	silent        atomic.Int64 // unix ns until when it is left alone; 0 = it is well

	using sync.RWMutex // held for reading by requests, for writing by the end
	left  bool
}

func newHost(peer sut.Peer, c Config) *host {
	return &host{name: peer.Node, address: peer.Address, redis: redis.NewClient(&redis.Options{
		Addr: peer.Address, Protocol: 2, DisableIdentity: true,
		MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true,
		DialTimeout: c.Timeout, ReadTimeout: c.Timeout, WriteTimeout: c.Timeout, PoolTimeout: c.Timeout,
		PoolSize: c.MaxConns, MaxActiveConns: c.MaxConns, PipelinePoolSize: -1,
		ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})}
}

// close waits for what is under way, which a timeout bounds.
func (h *host) close() {
	h.using.Lock()
	defer h.using.Unlock()
	if !h.left {
		h.left = true
		_ = h.redis.Close()
	}
}

// ask does something at the host unless it is silent, and notes whether it answers.
func (h *host) ask(ctx context.Context, do func(*host) error) error {
	h.using.RLock()
	defer h.using.RUnlock()
	if h.left {
		return errLeft
	}
	if !h.mayAsk(time.Now()) {
		return ErrUnavailable
	}
	err := do(h)
	var refused redis.Error
	switch {
	case err == nil, errors.As(err, &refused):
		if h.silent.Load() != 0 {
			h.silent.Store(0)
		}
	case over(ctx) != nil:
		// The caller left: that says nothing of the host.
		return over(ctx)
	case errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		// All connections are busy: it is slow for us, which the ones that are busy will
		// find out.
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		h.silent.Store(time.Now().Add(silence).UnixNano())
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	return err
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

func (h *host) get(ctx context.Context, key string) (value []byte, found bool, err error) {
	value, err = h.redis.Get(ctx, key).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, false, nil
	}
	return value, err == nil, err
}

func (h *host) set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if ttl == 0 {
		return h.redis.Do(ctx, "SET", key, value).Err()
	}
	ms := (ttl + time.Millisecond - 1) / time.Millisecond
	return h.redis.Do(ctx, "SET", key, value, "PX", int64(ms)).Err()
}

func (h *host) delete(ctx context.Context, key string) error {
	return h.redis.Del(ctx, key).Err()
}
