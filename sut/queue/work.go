package queue

import (
	"context"
	"errors"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
)

// Handler does jobs. Doing a job twice must have the same effect as doing it once.
type Handler interface {
	// Do does a job. After an error the job is delivered again later. The reason of photos.JobFailed is for people.
	Do(ctx context.Context, photo photos.ID) (end photos.JobEnd, reason string, err error)
	// GiveUp marks a photo as failed whose job has failed too often.
	GiveUp(ctx context.Context, photo photos.ID) (photos.JobEnd, error)
}

const (
	fetchWait = 2 * time.Second        // of one request for a job; then the worker asks again
	retryWait = 200 * time.Millisecond // after an error of the broker
	ackWait   = 2 * time.Second        // for the confirmation of an acknowledgement
	// finishBound is the time for the job in hand after the worker was told to stop.
	finishBound = 4 * time.Second
)

// Work takes jobs, one after the other, until ctx ends. Then it has some seconds to finish the job in hand; after that,
// the job is delivered again.
func (q *Queue) Work(ctx context.Context, h Handler) {
	working, abort := context.WithCancel(context.WithoutCancel(ctx))
	defer abort()
	defer context.AfterFunc(ctx, func() { time.AfterFunc(finishBound, abort) })()
	var jobs jetstream.Consumer
	for ctx.Err() == nil {
		var err error
		if jobs == nil {
			jobs, err = q.consumer(ctx)
		}
		if err == nil {
			err = q.next(ctx, working, jobs, h)
		}
		if err == nil || ctx.Err() != nil {
			continue
		}
		jobs = nil
		q.config.Log.Warn("cannot get jobs", "error", err.Error())
		wait := time.NewTimer(retryWait)
		select {
		case <-wait.C:
		case <-ctx.Done():
			wait.Stop()
		}
	}
}

// consumer returns the consumer of all workers. It makes it if it does not exist.
func (q *Queue) consumer(ctx context.Context) (jetstream.Consumer, error) {
	ctx, cancel := context.WithTimeout(ctx, fetchWait)
	defer cancel()
	jobs, err := q.stream.Consumer(ctx, stream, consumer)
	if errors.Is(err, jetstream.ErrStreamNotFound) || errors.Is(err, jetstream.ErrConsumerNotFound) {
		if err = q.Ensure(ctx); err == nil {
			jobs, err = q.stream.Consumer(ctx, stream, consumer)
		}
	}
	return jobs, err
}

// next waits for a job and does it. It asks for one job at a time: the time until a redelivery begins with the
// delivery, so it would pass while a job waits behind another one.
func (q *Queue) next(ctx, working context.Context, jobs jetstream.Consumer, h Handler) error {
	waiting, cancel := context.WithTimeout(ctx, fetchWait)
	defer cancel()
	batch, err := jobs.Fetch(1, jetstream.FetchContext(waiting))
	if err != nil {
		return err
	}
	for job := range batch.Messages() {
		q.handle(ctx, working, job, h)
	}
	err = batch.Error()
	if waiting.Err() != nil || errors.Is(err, nats.ErrTimeout) {
		return nil // there was no job
	}
	return err
}

// handle does one job and acknowledges it. ctx ends when the worker has to stop, and working some seconds later.
func (q *Queue) handle(ctx, working context.Context, job jetstream.Msg, h Handler) {
	id, parsed := strconv.ParseInt(strings.TrimPrefix(job.Subject(), subjects), 10, 64)
	meta, err := job.Metadata()
	if parsed != nil || err != nil {
		q.config.Log.Error("a message is no job", "subject", job.Subject())
		q.acknowledge(working, job)
		return
	}
	log := q.config.Log.With("photo", id, "delivery", meta.NumDelivered)
	if request := job.Headers().Get(sut.RequestIDHeader); request != "" {
		log = log.With("request_id", request)
	}
	if meta.NumDelivered > 1 {
		q.metrics.redelivered.Inc()
	}
	begin := time.Now()
	q.metrics.waited.Observe(begin.Sub(meta.Timestamp).Seconds())
	stop := q.hold(working, job)
	end, reason, err := q.try(ctx, working, h, photos.ID(id), meta.NumDelivered > MaxDeliver)
	if err == nil && end == photos.JobFailed {
		log.Warn("a job cannot be done", "reason", reason)
		err = q.bury(working, id, reason)
	}
	stop()
	if err != nil {
		q.metrics.retried.Inc()
		log.Warn("a job failed, and is delivered again", "error", err.Error())
		// The server delivers it again anyway if it does not get this.
		_ = job.NakWithDelay(q.config.Pause << min(meta.NumDelivered-1, MaxDeliver))
		return
	}
	q.metrics.took.Observe(time.Since(begin).Seconds())
	q.metrics.ended.WithLabelValues(string(end)).Inc()
	q.acknowledge(working, job)
}

// try does a job, or gives it up. While another tier does not answer, it tries again: this is no fault of the job, and
// other jobs would fail, too. So a tier that is down for a while costs no delivery. It stops trying when ctx ends.
func (q *Queue) try(
	ctx, working context.Context, h Handler, photo photos.ID, exhausted bool,
) (end photos.JobEnd, reason string, err error) {
	for {
		if exhausted {
			reason = "given up after " + strconv.Itoa(MaxDeliver) + " deliveries"
			end, err = h.GiveUp(working, photo)
		} else {
			end, reason, err = h.Do(working, photo)
		}
		if !errors.Is(err, photos.ErrUnavailable) {
			return end, reason, err
		}
		wait := time.NewTimer(q.config.Pause)
		select {
		case <-wait.C:
			q.metrics.retried.Inc()
		case <-ctx.Done():
			wait.Stop()
			return end, reason, err
		}
	}
}

// hold tells the server from time to time that a job is being done, until stop is called.
func (q *Queue) hold(ctx context.Context, job jetstream.Msg) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		tick := time.NewTicker(q.config.Redeliver / 3)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
				_ = job.InProgress() // if it does not arrive, the job is delivered again
			case <-ctx.Done():
				return
			}
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

// acknowledge removes a job from the queue. If the server does not confirm that, it delivers the job again.
func (q *Queue) acknowledge(ctx context.Context, job jetstream.Msg) {
	ctx, cancel := context.WithTimeout(ctx, ackWait)
	defer cancel()
	if err := job.DoubleAck(ctx); err != nil {
		q.config.Log.Warn("an acknowledgement is not confirmed", "subject", job.Subject(), "error", err.Error())
	}
}
