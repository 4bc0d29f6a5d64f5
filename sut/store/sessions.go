package store

import (
	"context"

	"github.com/jackc/pgx/v5"

	"github.com/stagebench/stagebench/sut/photos"
)

// The methods of this file keep the sessions of the web tier. They always use the primary: a replica may lack a session
// whose user is already logged in. An id is any text that names one session for ever. Sessions are not sharded: all of
// them are in the first shard.

// sessionsPerPage is the number of sessions that one call of ExpireSessions looks at.
const sessionsPerPage = 200

// AddSession stores a session. It does nothing if there is a session with this id.
func (s *Store) AddSession(ctx context.Context, id string, user photos.ID, expiresUS int64) (err error) {
	defer wrap(&err, "add a session of user %d", user)
	return s.writeTo(ctx, s.first(), guard{}, func(ctx context.Context, d on) error {
		_, err := d.pool.Exec(ctx, sqlAddSession, id, user, expiresUS)
		return err
	})
}

// Session returns the user of a session, and the time at which it ends. A session that has ended may still be there.
func (s *Store) Session(ctx context.Context, id string) (user photos.ID, expiresUS int64, err error) {
	defer wrap(&err, "session")
	err = s.readFrom(ctx, []*database{s.first().primary}, guard{}, func(ctx context.Context, d on) error {
		return d.pool.QueryRow(ctx, sqlSession, id).Scan(&user, &expiresUS)
	})
	return user, expiresUS, err
}

// RemoveSession removes a session, if there is one with this id.
func (s *Store) RemoveSession(ctx context.Context, id string) (err error) {
	defer wrap(&err, "remove a session")
	return s.writeTo(ctx, s.first(), guard{}, func(ctx context.Context, d on) error {
		_, err := d.pool.Exec(ctx, sqlRemoveSession, id)
		return err
	})
}

// ExpireSessions looks at a small batch of sessions, those with the next ids after the given one, and removes those
// that ended at the given time or before. It returns the last id that it looked at; "" = there is none after it.
func (s *Store) ExpireSessions(ctx context.Context, after string, endedUS int64) (last string, removed int, err error) {
	defer wrap(&err, "expire sessions")
	ended, looked := false, 0
	err = s.readFrom(ctx, []*database{s.first().primary}, guard{}, func(ctx context.Context, d on) error {
		rows, err := d.pool.Query(ctx, sqlSessions, after, int64(sessionsPerPage))
		if err != nil {
			return err
		}
		ended, looked = false, 0 // this may be the second attempt
		var id string
		var expiresUS int64
		_, err = pgx.ForEachRow(rows, []any{&id, &expiresUS}, func() error {
			last, looked, ended = id, looked+1, ended || expiresUS <= endedUS
			return nil
		})
		return err
	})
	if err != nil {
		return after, 0, err
	}
	if ended {
		err = s.writeTo(ctx, s.first(), guard{}, func(ctx context.Context, d on) error {
			done, err := d.pool.Exec(ctx, sqlExpireSessions, after, last, endedUS)
			removed = int(done.RowsAffected())
			return err
		})
	}
	if looked < sessionsPerPage {
		last = ""
	}
	return last, removed, err
}
