package queuetest

import (
	"testing"

	"github.com/nats-io/nats.go"

	"github.com/stagebench/stagebench/internal/servertest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/queue"
)

func strangers(t *testing.T, r rig) {
	r.ready()
	for _, secret := range []sut.Secret{"", "wrong"} {
		if err := queue.Ping(t.Context(), r.Address(), secret); err == nil {
			t.Errorf("a client with the secret %q is accepted", secret)
		}
		stranger := r.open(func(c *queue.Config) { c.Secret = secret })
		if err := stranger.Put(t.Context(), 1); err == nil {
			t.Errorf("a job of a client with the secret %q is accepted", secret)
		}
	}
	if err := queue.Ping(t.Context(), r.Address(), Secret); err != nil {
		t.Error(err)
	}
}

func noJob(t *testing.T, r rig) {
	q := r.ready()
	conn, err := nats.Connect("nats://"+r.Address(), nats.Token(string(Secret)))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Request("jobs.photo.cat", nil, servertest.Timeout); err != nil {
		t.Fatal(err)
	}
	w := &worker{}
	r.work(r.open(), w)
	r.put(q, 1)
	r.drained(q)
	if got := w.times(); len(got) != 1 {
		t.Errorf("done %v, want job 1 alone", got)
	}
}

// stops: the job in hand is done and acknowledged before Work returns, and no other is begun.
func stops(t *testing.T, r rig) {
	q := r.ready()
	begun, finish := make(chan struct{}), make(chan struct{})
	w := &worker{do: func(photos.ID) (photos.JobEnd, error) {
		begun <- struct{}{}
		<-finish
		return photos.JobDone, nil
	}}
	stop := r.work(r.open(), w)
	r.put(q, 1, 2)
	<-begun
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		stop()
	}()
	close(finish)
	select {
	case <-stopped:
	case <-begun: // the second job was asked for before the worker stopped
		<-stopped
	}
	f, err := q.Figures(t.Context())
	if done := len(w.times()); err != nil || f.Backlog != int64(2-done) {
		t.Errorf("figures %+v, %v, with %d jobs done", f, err, done)
	}
}
