package queue

import (
	"context"
	"fmt"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// Figures is the state of the queue.
type Figures struct {
	Backlog int64 // jobs that are stored and not done: not delivered yet, or not acknowledged
	Oldest  time.Duration
	Bytes   int64 // of the stored jobs
	Stored  int64 // jobs that are stored; the monitor computes how many of them a power cut would lose
	Dead    int64 // dead letters
	LastSeq uint64
	Leader  string // the broker that leads the others
}

// Figures reads the state of the queue. The broker must have been told by Ensure what to keep.
func (q *Queue) Figures(ctx context.Context) (f Figures, err error) {
	jobs, err := q.stream.Stream(ctx, stream)
	if err != nil {
		return f, fmt.Errorf("queue: stream %s: %w", stream, err)
	}
	workers, err := jobs.Consumer(ctx, consumer)
	if err != nil {
		return f, fmt.Errorf("queue: consumer %s: %w", consumer, err)
	}
	dead, err := q.stream.Stream(ctx, deadStream)
	if err != nil {
		return f, fmt.Errorf("queue: stream %s: %w", deadStream, err)
	}
	state, waiting := jobs.CachedInfo().State, workers.CachedInfo()
	f = Figures{
		Backlog: int64(waiting.NumPending) + int64(waiting.NumAckPending), Bytes: int64(state.Bytes),
		Stored: int64(state.Msgs), Dead: int64(dead.CachedInfo().State.Msgs), LastSeq: state.LastSeq,
	}
	if cluster := jobs.CachedInfo().Cluster; cluster != nil {
		f.Leader = cluster.Leader
	}
	if state.Msgs > 0 {
		f.Oldest = time.Since(state.FirstTime)
	}
	return f, nil
}

// Monitor exports the figures of a queue. Of several brokers, the one that leads reports them, and the others report
// zeros, because all of them see the same queue. A monitor also knows how many of the last messages may not be on the
// disk yet.
type Monitor struct {
	queue *Queue
	// unsynced is the time after which the broker has written a message to the disk; 0 = it acknowledges no message
	// before that.
	unsynced time.Duration

	mu      sync.Mutex
	samples []sample // one for each second of unsynced, oldest first
}

// sample is the number of messages that had been stored at a time.
type sample struct {
	at   time.Time
	last uint64
}

const (
	sampleInterval = time.Second
	figuresTimeout = time.Second
)

// NewMonitor returns the monitor of a queue, and registers its metrics stagebench_queue_*.
func NewMonitor(q *Queue, unsynced time.Duration, registry prometheus.Registerer) (*Monitor, error) {
	m := &Monitor{queue: q, unsynced: unsynced}
	return m, registry.Register(m)
}

// Run takes samples until ctx ends.
func (m *Monitor) Run(ctx context.Context) {
	tick := time.NewTicker(sampleInterval)
	defer tick.Stop()
	for {
		if f, err := m.read(ctx); err == nil {
			m.add(time.Now(), f.LastSeq)
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return
		}
	}
}

func (m *Monitor) read(ctx context.Context) (Figures, error) {
	ctx, cancel := context.WithTimeout(ctx, figuresTimeout)
	defer cancel()
	return m.queue.Figures(ctx)
}

// add adds a sample and removes those that are too old, except the newest of them.
func (m *Monitor) add(now time.Time, last uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.samples = append(m.samples, sample{now, last})
	for len(m.samples) > 1 && now.Sub(m.samples[1].at) >= m.unsynced {
		m.samples = m.samples[1:]
	}
}

// atRisk returns how many of the stored messages may not be on the disk: those that were stored since the oldest
// sample, at most.
func (m *Monitor) atRisk(f Figures) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.unsynced == 0 || f.Stored == 0 {
		return 0
	}
	if len(m.samples) == 0 || time.Since(m.samples[0].at) < m.unsynced {
		return f.Stored // all of them, because the broker has just started
	}
	return min(f.Stored, int64(f.LastSeq-m.samples[0].last))
}

// figure is an exported figure.
type figure struct {
	desc  *prometheus.Desc
	value func(*Monitor, Figures) float64
}

func figures() []figure {
	desc := func(name, help string) *prometheus.Desc {
		return prometheus.NewDesc("stagebench_queue_"+name, help, nil, nil)
	}
	return []figure{
		{
			desc("backlog", "Jobs that are stored and not done: waiting, or delivered and not acknowledged."),
			func(_ *Monitor, f Figures) float64 { return float64(f.Backlog) },
		},
		{
			desc("oldest_seconds", "Age of the oldest job that is not done."),
			func(_ *Monitor, f Figures) float64 { return f.Oldest.Seconds() },
		},
		{
			desc("bytes", "Bytes of the stored jobs."),
			func(_ *Monitor, f Figures) float64 { return float64(f.Bytes) },
		},
		{
			desc("at_risk", "Stored jobs that may not be on the disk yet. A power cut can lose them; a killed process cannot."),
			func(m *Monitor, f Figures) float64 { return float64(m.atRisk(f)) },
		},
		{
			desc("dead_letters", "Jobs that were given up."),
			func(_ *Monitor, f Figures) float64 { return float64(f.Dead) },
		},
	}
}

// Describe implements prometheus.Collector.
func (m *Monitor) Describe(out chan<- *prometheus.Desc) {
	for _, f := range figures() {
		out <- f.desc
	}
}

// Collect implements prometheus.Collector. A broker that does not answer has no figures.
func (m *Monitor) Collect(out chan<- prometheus.Metric) {
	now, err := m.read(context.Background())
	if err != nil {
		return
	}
	if m.queue.config.Replicas > 1 && now.Leader != m.queue.config.Name {
		now = Figures{}
	}
	for _, f := range figures() {
		out <- prometheus.MustNewConstMetric(f.desc, prometheus.GaugeValue, f.value(m, now))
	}
}
