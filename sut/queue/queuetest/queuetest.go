// Package queuetest is the conformance kit of the brokers of the queue. The embedded and the native broker must pass
// it, with the client of package queue. The kit kills brokers, and asserts no wall time.
package queuetest

import (
	"context"
	"errors"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/stagebench/stagebench/internal/servertest"
	"github.com/stagebench/stagebench/sut"
	"github.com/stagebench/stagebench/sut/photos"
	"github.com/stagebench/stagebench/sut/queue"
)

// Broker is a broker of the kit. Kill ends it without any warning. Start starts it again, at its address and with its
// files.
type Broker interface {
	Address() string
	Kill(t testing.TB)
	Start(t testing.TB)
}

// Secret is that of all brokers of the kit.
const Secret = sut.Secret("secret of the kit")

// Ping returns nil if the broker at an address accepts a client with the secret.
func Ping(ctx context.Context, address string, secret sut.Secret) error {
	return queue.Ping(ctx, address, secret)
}

// redeliver is the time until a redelivery, the shortest that the knob has.
const redeliver = time.Second

// Run checks a broker. open starts a new one for each check.
func Run(t *testing.T, open func(t testing.TB) Broker) {
	for _, check := range []struct {
		name string
		run  func(*testing.T, rig)
	}{
		{"each job is done once", once},
		{"a photo has one job", oneJob},
		{"a dead worker's job is delivered again", deadWorker},
		{"a job that takes long stays with its worker", longJob},
		{"a job that fails is given up", givenUp},
		{"a tier that is down costs no delivery", outage},
		{"a job that can never be done is a dead letter at once", hopeless},
		{"a full queue drops nothing", full},
		{"a killed broker loses nothing", killed},
		{"clients outlive the broker", brokerGone},
		{"strangers are refused", strangers},
		{"what is no job is removed", noJob},
		{"a worker that stops finishes its job", stops},
	} {
		t.Run(check.name, func(t *testing.T) {
			t.Parallel()
			check.run(t, rig{open(t), t})
		})
	}
}

// rig is a broker with its clients.
type rig struct {
	Broker
	t *testing.T
}

// open opens a client.
func (r rig) open(adjust ...func(*queue.Config)) *queue.Queue {
	r.t.Helper()
	c := queue.Config{
		Brokers: []sut.Peer{{Node: "broker-1", Address: r.Address()}}, Secret: Secret, Name: "kit", Redeliver: redeliver,
		Pause: 5 * time.Millisecond, MaxBytes: 1 << 20, Log: slog.New(slog.DiscardHandler),
	}
	for _, f := range adjust {
		f(&c)
	}
	q, err := queue.Open(c)
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(q.Close)
	return q
}

// ready opens a client of a broker that has its streams.
func (r rig) ready(adjust ...func(*queue.Config)) *queue.Queue {
	r.t.Helper()
	q := r.open(adjust...)
	servertest.Eventually(r.t, "the broker makes the streams", func() bool { return q.Ensure(r.t.Context()) == nil })
	return q
}

func (r rig) put(q *queue.Queue, ids ...photos.ID) {
	r.t.Helper()
	for _, id := range ids {
		if err := q.Put(r.t.Context(), id); err != nil {
			r.t.Fatal(err)
		}
	}
}

// work does jobs with a handler until stop is called.
func (r rig) work(q *queue.Queue, h queue.Handler) (stop func()) {
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		q.Work(ctx, h)
	}()
	stop = func() {
		cancel()
		<-done
	}
	r.t.Cleanup(stop)
	return stop
}

// drained waits until no job is left.
func (r rig) drained(q *queue.Queue) {
	r.t.Helper()
	servertest.Eventually(r.t, "the queue is empty", func() bool {
		f, err := q.Figures(r.t.Context())
		return err == nil && f.Backlog == 0
	})
}

// worker counts the jobs that it does.
type worker struct {
	mu      sync.Mutex
	done    map[photos.ID]int
	givenUp []photos.ID
	do      func(photos.ID) (photos.JobEnd, error) // nil = each job succeeds
}

func (w *worker) Do(_ context.Context, id photos.ID) (end photos.JobEnd, reason string, err error) {
	end = photos.JobDone
	if w.do != nil {
		end, err = w.do(id)
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.done == nil {
		w.done = map[photos.ID]int{}
	}
	w.done[id]++
	return end, "it is broken", err
}

func (w *worker) GiveUp(_ context.Context, id photos.ID) (photos.JobEnd, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.givenUp = append(w.givenUp, id)
	return photos.JobFailed, nil
}

// times returns how often each job was done.
func (w *worker) times() map[photos.ID]int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return maps.Clone(w.done)
}

func ids(n int) []photos.ID {
	var all []photos.ID
	for id := range n {
		all = append(all, photos.ID(id+1))
	}
	return all
}

func once(t *testing.T, r rig) {
	const jobs = 200
	q := r.ready()
	r.put(q, ids(jobs)...)
	f, err := q.Figures(t.Context())
	if err != nil || f.Backlog != jobs || f.Oldest <= 0 || f.Bytes <= 0 {
		t.Errorf("figures %+v, %v, want %d jobs", f, err, jobs)
	}
	a, b := &worker{}, &worker{}
	r.work(r.open(), a)
	r.work(r.open(), b)
	r.drained(q)
	total := 0
	for id, n := range a.times() {
		total += n
		if twice := n + b.times()[id]; twice != 1 {
			t.Errorf("job %d was done %d times", id, twice)
		}
	}
	for _, n := range b.times() {
		total += n
	}
	if total != jobs {
		t.Errorf("%d jobs were done, want %d", total, jobs)
	}
}

// oneJob: putting a photo again adds nothing while its job is stored, and a new job afterwards.
func oneJob(t *testing.T, r rig) {
	registry := prometheus.NewRegistry()
	q := r.ready(func(c *queue.Config) { c.Registry = registry })
	r.put(q, 1, 1, 2, 1)
	if f, err := q.Figures(t.Context()); err != nil || f.Backlog != 2 {
		t.Errorf("figures %+v, %v, want two jobs", f, err)
	}
	w := &worker{}
	r.work(r.open(), w)
	r.drained(q)
	r.put(q, 1)
	r.drained(q)
	if got, want := w.times(), map[photos.ID]int{1: 2, 2: 1}; !maps.Equal(got, want) {
		t.Errorf("done %v, want %v", got, want)
	}
	want := strings.NewReader(`
		# HELP stagebench_jobs_put_total Jobs that this host put into the queue, by result.
		# TYPE stagebench_jobs_put_total counter
		stagebench_jobs_put_total{result="failed"} 0
		stagebench_jobs_put_total{result="present"} 2
		stagebench_jobs_put_total{result="stored"} 3
	`)
	if err := testutil.GatherAndCompare(registry, want, "stagebench_jobs_put_total"); err != nil {
		t.Error(err)
	}
}

// deadWorker: a worker that has a job and is gone has not done it.
func deadWorker(t *testing.T, r rig) {
	q := r.ready()
	begun, held := make(chan struct{}), make(chan struct{})
	defer close(held)
	dying := r.open()
	go dying.Work(t.Context(), &worker{do: func(photos.ID) (photos.JobEnd, error) {
		close(begun)
		<-held
		return photos.JobDone, nil
	}})
	r.put(q, 7)
	<-begun
	dying.Close()
	registry := prometheus.NewRegistry()
	w := &worker{}
	r.work(r.open(func(c *queue.Config) { c.Registry = registry }), w)
	r.drained(q)
	if got := w.times(); got[7] != 1 {
		t.Errorf("done %v, want job 7 once", got)
	}
	want := strings.NewReader(`
		# HELP stagebench_jobs_redelivered_total Deliveries of jobs that had been delivered before.
		# TYPE stagebench_jobs_redelivered_total counter
		stagebench_jobs_redelivered_total 1
	`)
	if err := testutil.GatherAndCompare(registry, want, "stagebench_jobs_redelivered_total"); err != nil {
		t.Error(err)
	}
}

func longJob(t *testing.T, r rig) {
	q := r.ready()
	var begun atomic.Int64
	w := &worker{do: func(photos.ID) (photos.JobEnd, error) {
		begun.Add(1)
		long := time.NewTimer(5 * redeliver / 2) // without InProgress, the job would be delivered again meanwhile
		<-long.C
		return photos.JobDone, nil
	}}
	r.work(r.open(), w)
	r.work(r.open(), w)
	r.put(q, 1)
	r.drained(q)
	if begun.Load() != 1 {
		t.Errorf("the job was begun %d times, want once", begun.Load())
	}
}

// givenUp: a poison job fails alone, and its last failure is known.
func givenUp(t *testing.T, r rig) {
	q := r.ready()
	w := &worker{do: func(id photos.ID) (photos.JobEnd, error) {
		if id == 3 {
			return "", errors.New("no database")
		}
		return photos.JobDone, nil
	}}
	r.work(r.open(), w)
	r.put(q, ids(6)...)
	r.drained(q)
	want := map[photos.ID]int{1: 1, 2: 1, 3: queue.MaxDeliver, 4: 1, 5: 1, 6: 1}
	if got := w.times(); !maps.Equal(got, want) || !slices.Equal(w.givenUp, []photos.ID{3}) {
		t.Errorf("done %v and given up %v, want %v and 3", got, w.givenUp, want)
	}
	r.deadLetter(q, 3, "given up after 5 deliveries")
}

// outage: a job that cannot be done because another tier does not answer is tried until it does.
func outage(t *testing.T, r rig) {
	q := r.ready()
	var attempts atomic.Int64
	w := &worker{do: func(photos.ID) (photos.JobEnd, error) {
		if attempts.Add(1) <= 3*queue.MaxDeliver {
			return "", photos.ErrUnavailable
		}
		return photos.JobDone, nil
	}}
	stop := r.work(r.open(), w)
	r.put(q, 1, 2)
	r.drained(q)
	if done := w.times(); done[1] != 3*queue.MaxDeliver+1 || done[2] != 1 || w.givenUp != nil {
		t.Errorf("tried %v and given up %v", done, w.givenUp)
	}
	attempts.Store(0)
	r.put(q, 3)
	servertest.Eventually(t, "the job is tried", func() bool { return attempts.Load() > 0 })
	stop() // does not wait for the tier
}

func hopeless(t *testing.T, r rig) {
	q := r.ready()
	w := &worker{do: func(photos.ID) (photos.JobEnd, error) { return photos.JobFailed, nil }}
	r.work(r.open(), w)
	r.put(q, 9)
	r.drained(q)
	if got := w.times(); got[9] != 1 || w.givenUp != nil {
		t.Errorf("done %v and given up %v, want once and nothing", got, w.givenUp)
	}
	r.deadLetter(q, 9, "it is broken")
}

// deadLetter checks that there is one dead letter.
func (r rig) deadLetter(q *queue.Queue, photo photos.ID, reason string) {
	r.t.Helper()
	letters, err := q.DeadLetters(r.t.Context(), 10)
	if err != nil || len(letters) != 1 || letters[0].AtUS == 0 ||
		letters[0].Photo != photo || letters[0].Reason != reason {
		r.t.Errorf("dead letters %+v, %v, want one of photo %d: %s", letters, err, photo, reason)
	}
	if f, err := q.Figures(r.t.Context()); err != nil || f.Dead != 1 {
		r.t.Errorf("figures %+v, %v, want one dead letter", f, err)
	}
}

// full: what the queue has no room for is an error, and everything else is delivered.
func full(t *testing.T, r rig) {
	q := r.ready(func(c *queue.Config) { c.MaxBytes = 4 << 10 })
	var stored []photos.ID
	for id := photos.ID(1); ; id++ {
		err := q.Put(t.Context(), id)
		if errors.Is(err, photos.ErrUnavailable) {
			break
		}
		if err != nil || id > 1000 {
			t.Fatalf("job %d: %v", id, err)
		}
		stored = append(stored, id)
	}
	if len(stored) < 10 {
		t.Errorf("%d jobs fit into 4 KiB", len(stored))
	}
	w := &worker{}
	r.work(r.open(func(c *queue.Config) { c.MaxBytes = 4 << 10 }), w)
	r.drained(q)
	if got := slices.Sorted(maps.Keys(w.times())); !slices.Equal(got, stored) {
		t.Errorf("done %v, want %v", got, stored)
	}
	r.put(q, 5000)
}

// killed: the broker is killed while jobs are put and done. Every job that was acknowledged is done.
func killed(t *testing.T, r rig) {
	q := r.ready()
	w := &worker{}
	r.work(r.open(), w)
	var mu sync.Mutex
	var stored []photos.ID
	enough := make(chan struct{}) // some jobs were stored after the restart
	restarted := make(chan struct{})
	putting := make(chan struct{})
	go func() {
		defer close(putting)
		after := 0
		for id := photos.ID(1); after < 50 && t.Context().Err() == nil; id++ {
			if q.Put(t.Context(), id) != nil {
				continue
			}
			mu.Lock()
			stored = append(stored, id)
			mu.Unlock()
			select {
			case <-restarted:
				after++
			default:
			}
		}
		close(enough)
	}()
	for range 2 {
		mu.Lock()
		before := len(stored)
		mu.Unlock()
		servertest.Eventually(t, "jobs are stored", func() bool {
			mu.Lock()
			defer mu.Unlock()
			return len(stored) > before+100
		})
		r.Kill(t)
		r.Start(t)
	}
	close(restarted)
	<-enough
	<-putting
	r.drained(q)
	for _, id := range stored {
		if w.times()[id] == 0 {
			t.Errorf("job %d was acknowledged and never done", id)
		}
	}
}

// brokerGone: without the broker, Put returns an error in time. When it is back, the same clients go on.
func brokerGone(t *testing.T, r rig) {
	q := r.ready()
	w := &worker{}
	r.work(r.open(), w)
	r.put(q, 1)
	r.drained(q)
	r.Kill(t)
	if err := q.Put(t.Context(), 2); !errors.Is(err, photos.ErrUnavailable) || sut.TierOf(err) != sut.Queue {
		t.Errorf("put without a broker: %v, want an error of the queue", err)
	}
	early := r.open() // before the broker runs
	r.Start(t)
	servertest.Eventually(t, "a job is stored", func() bool { return early.Put(t.Context(), 3) == nil })
	servertest.Eventually(t, "the job is done", func() bool { return w.times()[3] > 0 })
	if w.times()[2] != 0 {
		t.Error("a job that Put had given up was sent later")
	}
}
