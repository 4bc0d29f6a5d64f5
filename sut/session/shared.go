package session

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// Table stores sessions outside the web hosts. Its errors wrap photos.ErrNotFound, photos.ErrUnavailable, or
// photos.ErrFull if it takes no further session. An id is 32 hexadecimal digits. All methods may be called
// concurrently.
type Table interface {
	// AddSession stores a session. It does nothing if there is a session with this id.
	AddSession(ctx context.Context, id string, user photos.ID, expiresUS int64) error
	// Session returns a session. It may have ended.
	Session(ctx context.Context, id string) (user photos.ID, expiresUS int64, err error)
	// RemoveSession removes a session, if there is one with this id.
	RemoveSession(ctx context.Context, id string) error
}

// Shared is sessions in a Table that all web hosts share. Every host knows every session, and a session outlives the
// host that started it.
//
// The table has digests of the tokens. So whoever reads it cannot act as a user, and a client's token may be any text.
type Shared struct {
	table Table
	tier  sut.Role
	now   func() time.Time
}

// NewShared returns sessions in a table. tier is the tier of the table; now is the clock, nil = time.Now.
func NewShared(table Table, tier sut.Role, now func() time.Time) *Shared {
	if now == nil {
		now = time.Now
	}
	return &Shared{table: table, tier: tier, now: now}
}

// Start logs a user in. A user may have any number of sessions.
func (s *Shared) Start(ctx context.Context, user photos.ID) (string, time.Time, error) {
	token, expires := newToken(), s.now().Add(ttl)
	return token, expires, s.Adopt(ctx, token, user, expires)
}

func newToken() string {
	var t token
	_, _ = rand.Read(t[:]) // it never returns an error (since Go 1.24)
	return hex.EncodeToString(t[:])
}

// Adopt stores a session that was started elsewhere. It ends when it would have ended there.
func (s *Shared) Adopt(ctx context.Context, token string, user photos.ID, expires time.Time) error {
	if !s.now().Before(expires) {
		return nil
	}
	return s.failed(s.table.AddSession(ctx, digest(token), user, expires.UnixMicro()))
}

// User returns the user of a session.
func (s *Shared) User(ctx context.Context, token string) (photos.ID, error) {
	user, expiresUS, err := s.table.Session(ctx, digest(token))
	if err == nil && !s.now().Before(time.UnixMicro(expiresUS)) {
		err = photos.ErrNotFound
	}
	if err != nil {
		return 0, s.failed(err)
	}
	return user, nil
}

// End logs a user out. An unknown session is not an error.
func (s *Shared) End(ctx context.Context, token string) error {
	return s.failed(s.table.RemoveSession(ctx, digest(token)))
}

// failed adds the tier to an error of the table.
func (s *Shared) failed(err error) error {
	if err == nil {
		return nil
	}
	return sut.OfTier(s.tier, fmt.Errorf("session: %w", err))
}

// digest returns the id of the session with a token. It has as many bits as a token.
func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:len(token{})])
}

// Expirer is a Table that keeps sessions that have ended until it is told to remove them.
type Expirer interface {
	// ExpireSessions looks at the sessions with the next ids after the given one, and removes those that ended at the
	// given time or before. It returns the last id that it looked at; "" = there is none after it.
	ExpireSessions(ctx context.Context, after string, endedUS int64) (last string, removed int, err error)
}

// Expire removes sessions that have ended until ctx ends, one small batch per interval. The first batch starts at a
// random id, so that several hosts do not look at the same sessions. report gets the errors.
func Expire(ctx context.Context, table Expirer, interval time.Duration, report func(error)) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for after := newToken(); ; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		last, _, err := table.ExpireSessions(ctx, after, time.Now().UnixMicro())
		if err != nil && ctx.Err() == nil && !errors.Is(err, photos.ErrUnavailable) {
			report(err)
		}
		if err == nil {
			after = last
		}
	}
}
