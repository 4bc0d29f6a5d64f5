package postgres

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// The heartbeat: the primary writes its clock into a row as often as beatEvery,
// and a replica looks for it. The row lies in a schema of its own, which is not on
// anybody's search path.
const (
	beatEvery   = 250 * time.Millisecond
	beatWindow  = time.Second // the lag is the smallest seen within it
	beatTimeout = 5 * time.Second

	beatMake = `CREATE SCHEMA IF NOT EXISTS stagebench_replication;
		CREATE TABLE IF NOT EXISTS stagebench_replication.beat (id int PRIMARY KEY, at_us bigint NOT NULL);
		INSERT INTO stagebench_replication.beat VALUES (1, 0) ON CONFLICT DO NOTHING`
	beatWrite = `UPDATE stagebench_replication.beat SET at_us = $1 WHERE id = 1`
	beatRead  = `SELECT at_us FROM stagebench_replication.beat WHERE id = 1`
)

// Watch measures the lag of replicas until ctx is done: a primary's writes the
// heartbeat, a replica's looks for it. Run one beside each server that has copies,
// from when it is ready. It has one connection, which it renews, and needs a few
// short queries a second. After a promotion it makes a checkpoint, as those who
// fetch a copy would have to wait for one.
func (s *Server) Watch(ctx context.Context) {
	if s.cfg.Replication == nil || s.session.turn.Acquire(ctx, 1) != nil {
		return
	}
	s.session.kept = true
	s.session.turn.Release(1)
	var checkpoints sync.WaitGroup
	defer func() {
		checkpoints.Wait()
		_ = s.session.turn.Acquire(context.Background(), 1) // never fails
		defer s.session.turn.Release(1)
		s.session.kept = false
		s.session.close()
	}()

	made, replica := false, false
	for {
		wait := beatEvery
		switch primary := s.current().Primary == nil; {
		case primary && replica:
			replica = false
			checkpoints.Go(func() { s.checkpoint(ctx) })
			fallthrough
		case primary:
			made = s.beat(ctx, made) == nil
		default:
			replica = true
			wait = s.lookForBeat(ctx)
		}
		select {
		case <-time.After(wait):
		case <-ctx.Done():
			return
		}
	}
}

// beat writes the heartbeat, and first makes the row for it.
func (s *Server) beat(ctx context.Context, made bool) error {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	return s.ask(ctx, func(conn *pgx.Conn) error {
		if !made {
			if _, err := conn.Exec(ctx, beatMake); err != nil {
				return err
			}
		}
		_, err := conn.Exec(ctx, beatWrite, time.Now().UnixMicro())
		return err
	})
}

// lookForBeat reads the heartbeat once and says when to look again.
func (s *Server) lookForBeat(ctx context.Context) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, beatTimeout)
	defer cancel()
	var at int64
	// Until the primary has made the row there is none, which is no error.
	err := s.ask(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, beatRead).Scan(&at) })
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && at > 0 {
		s.copy.beats.see(now, time.UnixMicro(at))
	}
	return s.copy.beats.next(now)
}

// checkpoint writes everything to the data directory, in its own time.
func (s *Server) checkpoint(ctx context.Context) {
	conn, err := s.connect(ctx, "stagebench-checkpoint")
	if err == nil {
		_, err = conn.Exec(ctx, "CHECKPOINT")
		_ = conn.Close(context.WithoutCancel(ctx)) // nothing depends on it
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("no checkpoint after the promotion", "error", err)
	}
}

// beats is what was seen of the heartbeat.
type beats struct {
	last    time.Time // the newest beat, by the primary's clock
	arrived time.Time // when it was first seen; zero = none was
	seen    []sighting
}

// sighting is one look at the heartbeat.
type sighting struct {
	at  time.Time
	age time.Duration // of the beat that was the newest then
}

// see notes a look at the heartbeat.
func (b *beats) see(now, beat time.Time) {
	if !beat.Equal(b.last) {
		b.last, b.arrived = beat, now
	}
	b.seen = append(b.seen, sighting{now, now.Sub(beat)})
	b.forget(now)
}

// forget drops the sightings that are too old to count.
func (b *beats) forget(now time.Time) {
	b.seen = slices.DeleteFunc(b.seen, func(s sighting) bool { return now.Sub(s.at) > beatWindow })
}

// lag is how late changes are applied, in nanoseconds: the age of a beat when it
// was seen first. A look is a bit later than that, so that the smallest age counts.
// When changes stop coming it grows with time. -1 = there was no beat yet.
func (b *beats) lag(now time.Time) int64 {
	if b.arrived.IsZero() {
		return -1
	}
	b.forget(now)
	smallest := now.Sub(b.last)
	for _, s := range b.seen {
		smallest = min(smallest, s.age)
	}
	return max(int64(smallest), 0)
}

// next is how long to wait before the next look. A beat is expected one beatEvery
// after the last one; it is looked for often around that time only, as each look
// costs CPU of a host that may have a tenth of a core.
func (b *beats) next(now time.Time) time.Duration {
	const early = 25 * time.Millisecond
	since := now.Sub(b.arrived)
	switch {
	case since < beatEvery-early:
		return beatEvery - early - since
	case since < beatEvery+2*early:
		return 10 * time.Millisecond
	case since < beatWindow:
		return 25 * time.Millisecond
	}
	return 100 * time.Millisecond
}
