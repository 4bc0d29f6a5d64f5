package cache

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"
)

// respWire is a connection pool to a host that speaks the Redis protocol.
type respWire struct{ redis *redis.Client }

func newRESPWire(address string, c Config) respWire {
	return respWire{redis.NewClient(&redis.Options{
		Addr: address, Password: string(c.Secret), Protocol: 2, DisableIdentity: true,
		MaxRetries: -1, DialerRetries: 1, ContextTimeoutEnabled: true,
		DialTimeout: c.Timeout, ReadTimeout: c.Timeout, WriteTimeout: c.Timeout, PoolTimeout: c.Timeout,
		PoolSize: maxConns, MaxActiveConns: maxConns, PipelinePoolSize: -1,
		ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})}
}

// errBadReply means that a host has sent a reply of an unexpected type.
var errBadReply = errors.New("unexpected reply")

func (w respWire) close() { _ = w.redis.Close() }

func (w respWire) classify(err error) outcome {
	var reply redis.Error
	var op *net.OpError
	switch {
	case errors.As(err, &reply), errors.Is(err, errBadReply):
		return answered
	case errors.Is(err, redis.ErrPoolTimeout), errors.Is(err, redis.ErrPoolExhausted):
		return poolBusy
	case errors.As(err, &op) && op.Op == "dial":
		return notConnected
	}
	return noAnswer
}

func (w respWire) get(ctx context.Context, key string) (value []byte, found bool, err error) {
	value, err = w.redis.Get(ctx, key).Bytes()
	if errors.Is(err, redis.Nil) {
		return nil, false, nil
	}
	return value, err == nil, err
}

func (w respWire) set(ctx context.Context, key string, value []byte, ttl time.Duration) error {
	if ttl == 0 {
		return w.redis.Do(ctx, "SET", key, value).Err()
	}
	ms := (ttl + time.Millisecond - 1) / time.Millisecond
	return w.redis.Do(ctx, "SET", key, value, "PX", int64(ms)).Err()
}

func (w respWire) delete(ctx context.Context, key string) error {
	return w.redis.Del(ctx, key).Err()
}

func (w respWire) fetch(ctx context.Context, key string) (value []byte, hit bool, err error) {
	reply, err := w.redis.Do(ctx, FetchCommand, key).Result()
	if err != nil {
		return nil, false, decodeError(err)
	}
	if list, isList := reply.([]any); isList && len(list) == 2 {
		hitFlag, isNumber := list[0].(int64)
		if text, isText := list[1].(string); isNumber && isText {
			return []byte(text), hitFlag == 1, nil
		}
	}
	return nil, false, fmt.Errorf("%w to %s: %v", errBadReply, FetchCommand, reply)
}

func (w respWire) apply(ctx context.Context, key string, write Write) (version int64, err error) {
	text, err := json.Marshal(write)
	if err != nil {
		return 0, err
	}
	reply, err := w.redis.Do(ctx, ApplyCommand, key, text).Result()
	if err != nil {
		return 0, decodeError(err)
	}
	version, isNumber := reply.(int64)
	if !isNumber {
		return 0, fmt.Errorf("%w to %s: %v", errBadReply, ApplyCommand, reply)
	}
	return version, nil
}
