package postgres

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
)

// Heartbeat: the primary writes its clock into a row at each heartbeatInterval, and a
// replica reads the row to measure its lag. The row is in a separate schema, outside the
// search path of the service; setup creates it.
const (
	heartbeatInterval = 250 * time.Millisecond
	heartbeatTimeout  = 5 * time.Second // bounds one write or read
	lagWindow         = time.Second     // the lag is the minimum of the samples in this window

	heartbeatWrite = `UPDATE stagebench_replication.beat SET at_us = $1 WHERE id = 1`
	heartbeatRead  = `SELECT at_us FROM stagebench_replication.beat WHERE id = 1`
)

// Watch measures the lag of replicas until ctx ends. On a primary it writes the heartbeat,
// on a replica it reads it. Run one Watch for each server with Replication, after the
// server is ready. Watch uses one connection and a few short queries per second, and it
// reconnects after an error. After a promotion it makes a checkpoint, so that a replica
// that fetches a new copy does not have to wait for one.
func (s *Server) Watch(ctx context.Context) {
	if s.cfg.Replication == nil || s.session.sem.Acquire(ctx, 1) != nil {
		return
	}
	s.session.keepOpen = true
	s.session.sem.Release(1)
	var checkpoints sync.WaitGroup
	defer func() {
		checkpoints.Wait()
		_ = s.session.sem.Acquire(context.Background(), 1) // never fails
		defer s.session.sem.Release(1)
		s.session.keepOpen = false
		s.session.close()
	}()

	replica := false
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-timer.C:
		case <-ctx.Done():
			return
		}
		wait := heartbeatInterval
		switch primary := s.current().Primary == nil; {
		case primary && replica:
			replica = false
			checkpoints.Go(func() { s.checkpoint(ctx) })
			fallthrough
		case primary:
			s.writeHeartbeat(ctx)
		default:
			replica = true
			wait = s.readHeartbeat(ctx)
		}
		timer.Reset(wait)
	}
}

// writeHeartbeat writes the heartbeat. The next one follows soon, so an error is ignored.
func (s *Server) writeHeartbeat(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	defer cancel()
	_ = s.withSession(ctx, func(conn *pgx.Conn) error {
		_, err := conn.Exec(ctx, heartbeatWrite, time.Now().UnixMicro())
		return err
	})
}

// readHeartbeat reads the heartbeat and returns the time until the next read.
func (s *Server) readHeartbeat(ctx context.Context) time.Duration {
	ctx, cancel := context.WithTimeout(ctx, heartbeatTimeout)
	defer cancel()
	var at int64
	// The next read follows soon, so an error is ignored.
	err := s.withSession(ctx, func(conn *pgx.Conn) error { return conn.QueryRow(ctx, heartbeatRead).Scan(&at) })
	now := time.Now()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil && at > s.replica.lagSince {
		s.replica.heartbeats.observe(now, time.UnixMicro(at))
	}
	return s.replica.heartbeats.nextRead(now)
}

// checkpoint makes a checkpoint over a separate connection. It logs a failure.
func (s *Server) checkpoint(ctx context.Context) {
	conn, err := s.connect(ctx, nodeUser, "stagebench-checkpoint")
	if err == nil {
		_, err = conn.Exec(ctx, "CHECKPOINT")
		_ = conn.Close(context.WithoutCancel(ctx)) // the checkpoint is complete without it
	}
	if err != nil && ctx.Err() == nil {
		s.cfg.Log.Warn("checkpoint after the promotion failed", "error", err)
	}
}

// heartbeats holds what a replica has read of the heartbeat. The caller holds Server.mu.
type heartbeats struct {
	last    time.Time // newest heartbeat, by the primary's clock
	arrived time.Time // time of the read that first returned it; zero = none yet
	samples []lagSample
}

// lagSample is the result of one read of the heartbeat.
type lagSample struct {
	at  time.Time     // of the read
	age time.Duration // of the heartbeat at that time
}

// observe adds the result of a read at now.
func (h *heartbeats) observe(now, heartbeat time.Time) {
	if !heartbeat.Equal(h.last) {
		h.last, h.arrived = heartbeat, now
	}
	h.samples = append(h.samples, lagSample{now, now.Sub(heartbeat)})
	h.prune(now)
}

// prune removes samples that are older than lagWindow.
func (h *heartbeats) prune(now time.Time) {
	h.samples = slices.DeleteFunc(h.samples, func(s lagSample) bool { return now.Sub(s.at) > lagWindow })
}

// lag returns the replication lag in nanoseconds; -1 = no heartbeat yet. It is the minimum
// age of the heartbeat in the samples, because each read is a little later than the arrival
// of the heartbeat. When no more changes arrive, the lag grows with time.
func (h *heartbeats) lag(now time.Time) int64 {
	if h.arrived.IsZero() {
		return -1
	}
	h.prune(now)
	smallest := now.Sub(h.last)
	for _, s := range h.samples {
		smallest = min(smallest, s.age)
	}
	return max(int64(smallest), 0)
}

// nextRead returns the time until the next read. The next heartbeat is expected one
// heartbeatInterval after the last one. Reads are frequent around that time only, because
// each read costs CPU, and a host may have a tenth of a core.
func (h *heartbeats) nextRead(now time.Time) time.Duration {
	const early = 25 * time.Millisecond
	since := now.Sub(h.arrived)
	switch {
	case since < heartbeatInterval-early:
		return heartbeatInterval - early - since
	case since < heartbeatInterval+2*early:
		return 10 * time.Millisecond
	case since < lagWindow:
		return 25 * time.Millisecond
	}
	return 100 * time.Millisecond
}
