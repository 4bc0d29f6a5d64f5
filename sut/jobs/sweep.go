package jobs

import (
	"context"
	"log/slog"
	"math/rand/v2"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/stagebench/stagebench/sut/photos"
)

// Sweeper puts photos into the queue again that have been processing for too long: the web host died before it put the
// job, or the queue did not answer, or lost the job. Every web host has one. A job that the queue has stays as it is.
type Sweeper struct {
	// Processing lists photos in processing that were created before a time, the oldest first.
	Processing func(ctx context.Context, beforeUS int64, limit int) ([]photos.ID, error)
	// PutAgain puts the job of a photo into the queue, and says whether the queue did not have it.
	PutAgain func(ctx context.Context, photo photos.ID) (missing bool, err error)
	// Age is how long a photo may be processing. Interval is the mean time between two sweeps; the times are random, so
	// that the hosts take turns.
	Age, Interval time.Duration
	Seed          uint64 // of these times; each host has another one
	Log           *slog.Logger
	Swept         prometheus.Counter // counts the jobs that were missing
}

// sweepLimit is the number of photos of one sweep. A sweep puts them one after the other.
const sweepLimit = 20

// Run sweeps until ctx ends.
func (s Sweeper) Run(ctx context.Context) {
	random := rand.New(rand.NewPCG(s.Seed, 0))
	for {
		wait := time.NewTimer(s.Interval/2 + time.Duration(random.Int64N(int64(s.Interval))))
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
			return
		}
		if err := s.Sweep(ctx); err != nil && ctx.Err() == nil {
			s.Log.Warn("cannot look for photos that wait for their processing", "error", err.Error())
		}
	}
}

// Sweep puts the oldest photos again.
func (s Sweeper) Sweep(ctx context.Context) error {
	waiting, err := s.Processing(ctx, time.Now().Add(-s.Age).UnixMicro(), sweepLimit)
	if err != nil {
		return err
	}
	for _, photo := range waiting {
		missing, err := s.PutAgain(ctx, photo)
		if err != nil {
			return err // the others would wait for the queue, too
		}
		if missing {
			s.Swept.Inc()
		}
	}
	return nil
}
