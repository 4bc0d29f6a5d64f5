package session

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/redis/go-redis/v9"
	"github.com/redis/go-redis/v9/maintnotifications"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/swap"
)

// RESPConfig configures a RESP.
type RESPConfig struct {
	Host   sut.Peer
	Secret sut.Secret // the password of the host; "" = it demands none
	// Now is the clock for the life of a session; nil = time.Now.
	Now func() time.Time
	// Timeout bounds connecting, and one request; 0 = 1 s.
	Timeout time.Duration
}

// RESP is the Table of a host that speaks the Redis protocol. A session is one key, which the host removes when the
// session ends. A look-up is one GET, and writes nothing.
type RESP struct {
	config RESPConfig
	host   swap.Value[respHost]
}

type respHost struct {
	peer  sut.Peer
	redis *redis.Client
}

// maxConns is the maximum number of connections of a web host to the session host.
const maxConns = 64

// NewRESP returns the table of a host. It connects at the first use. The caller must close it.
func NewRESP(c RESPConfig) *RESP {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Timeout == 0 {
		c.Timeout = time.Second
	}
	r := &RESP{config: c}
	_ = r.SetHost(context.Background(), c.Host) // cannot fail: there are no earlier requests
	return r
}

// SetHost replaces the host. It waits until all requests to the earlier one have ended, or returns the error of ctx.
func (r *RESP) SetHost(ctx context.Context, host sut.Peer) error {
	now, done := r.host.Use()
	done()
	if now.redis != nil && now.peer == host {
		return nil
	}
	c := r.config
	client := redis.NewClient(&redis.Options{
		Addr: host.Address, Password: string(c.Secret), Protocol: 2, DisableIdentity: true,
		// A repeated request does no harm: the sessions of one key are all the same.
		MaxRetries: 1, MinRetryBackoff: -1, MaxRetryBackoff: -1, DialerRetries: 1, ContextTimeoutEnabled: true,
		DialTimeout: c.Timeout, ReadTimeout: c.Timeout, WriteTimeout: c.Timeout, PoolTimeout: c.Timeout,
		PoolSize: maxConns, MaxActiveConns: maxConns, PipelinePoolSize: -1,
		ReadBufferSize: 4 << 10, WriteBufferSize: 4 << 10,
		MaintNotificationsConfig: &maintnotifications.Config{Mode: maintnotifications.ModeDisabled},
	})
	return r.host.Replace(respHost{host, client}, func(before respHost) { _ = before.redis.Close() })(ctx)
}

// Host returns the host.
func (r *RESP) Host() sut.Peer {
	host, done := r.host.Use()
	defer done()
	return host.peer
}

// Close closes all connections.
func (r *RESP) Close() {
	host, done := r.host.Use()
	defer done()
	_ = host.redis.Close() // nothing is buffered
}

// AddSession implements Table.
func (r *RESP) AddSession(ctx context.Context, id string, user photos.ID, expiresUS int64) error {
	life := time.UnixMicro(expiresUS).Sub(r.config.Now())
	seconds := int64((life + time.Second - 1) / time.Second)
	if seconds <= 0 {
		return nil
	}
	value := strconv.FormatInt(int64(user), 10) + " " + strconv.FormatInt(expiresUS, 10)
	host, done := r.host.Use()
	defer done()
	return classify(ctx, host.redis.Do(ctx, "SET", key(id), value, "EX", seconds).Err())
}

// Session implements Table.
func (r *RESP) Session(ctx context.Context, id string) (user photos.ID, expiresUS int64, err error) {
	host, done := r.host.Use()
	defer done()
	value, err := host.redis.Get(ctx, key(id)).Result()
	if err != nil {
		return 0, 0, classify(ctx, err)
	}
	first, second, _ := strings.Cut(value, " ")
	number, err := strconv.ParseInt(first, 10, 64)
	if err == nil {
		expiresUS, err = strconv.ParseInt(second, 10, 64)
	}
	if err != nil {
		return 0, 0, fmt.Errorf("%s has the value %.50q for a session: %w", host.peer.Node, value, err)
	}
	return photos.ID(number), expiresUS, nil
}

// RemoveSession implements Table.
func (r *RESP) RemoveSession(ctx context.Context, id string) error {
	host, done := r.host.Use()
	defer done()
	return classify(ctx, host.redis.Del(ctx, key(id)).Err())
}

// key returns the key of a session.
func key(id string) string { return "session:" + id }

// classify wraps an error of a host with the matching error of package photos.
func classify(ctx context.Context, err error) error {
	var reply redis.Error
	switch {
	case err == nil:
		return nil
	case errors.Is(err, redis.Nil):
		return photos.ErrNotFound
	case errors.Is(ctx.Err(), context.Canceled):
		return fmt.Errorf("%w: %w", context.Canceled, err)
	case redis.IsOOMError(err):
		return fmt.Errorf("%w: %w", photos.ErrFull, err)
	case errors.As(err, &reply) && !unready(err):
		return err // a bug: the host does not take this command or this secret
	}
	return fmt.Errorf("%w: %w", photos.ErrUnavailable, err)
}

// unready reports whether a host answered that it cannot serve at the moment.
func unready(err error) bool {
	return redis.IsLoadingError(err) || redis.IsMaxClientsError(err) || redis.IsTryAgainError(err)
}
